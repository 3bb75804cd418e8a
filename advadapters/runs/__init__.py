"""A run in its folder: begun, opened, trained, evaluated, and put together from others."""
