"""Sites: where jobs run. `base.py` has every field with its comment; the files beside it are examples, one an engine."""
