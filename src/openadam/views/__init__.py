"""Views: what people see of a rule and of a run. `show` prints an algorithm, `trace` works it through with numbers."""
