"""The faults of docs/reliability.md, injected. Each test names its fault: `@pytest.mark.fault("F17")`."""
