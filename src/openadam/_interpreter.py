"""Refuses sub-interpreters when the package is imported: NumPy does not support them, and a step in one may never return."""

from __future__ import annotations

import ctypes

__all__: list[str] = []


def refuse_sub_interpreters() -> None:
    """Raise ImportError in any interpreter of this process but its first."""
    api = getattr(ctypes, "pythonapi", None)  # of CPython
    if api is None or not hasattr(api, "PyInterpreterState_Main") or not hasattr(api, "PyInterpreterState_Get"):
        return
    main, own = api.PyInterpreterState_Main, api.PyInterpreterState_Get
    main.restype = own.restype = ctypes.c_void_p
    if main() != own():
        raise ImportError(
            "openadam cannot run in a sub-interpreter, since NumPy does not support them: use the main interpreter "
            "(under mod_wsgi, WSGIApplicationGroup %{GLOBAL}) or processes"
        )


refuse_sub_interpreters()
