"""The command groups of the `crossmodal` command; each module's `app` is one of them."""
