"""One foreign system each."""
