"""The little language in which update rules are written: a traced expression graph, its rewrites, and its printers.

A rule is called once on symbols (`expression`), which gives a graph (`graph`); the graph is rewritten once (`program`), so that
every back end performs the same operations in the same order; then it is evaluated on arrays (`arrays`), printed as C++
(`cpp`), or printed for people (`notation`). For example::

    (1 - beta1) * g     scalar `1 - beta1`, computed once a step in float64, times the element `g`
    1 - beta2**t        the scalar `-expm1(t * log(beta2))`, which does not cancel
    m_hat / (sqrt(v_hat) + eps)     an element quotient, defined as 0 where its denominator is 0

Standard library only: this package also runs inside the build, to print the native kernels.
"""
