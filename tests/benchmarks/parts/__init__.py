"""The parts of `accelerator.py`, in order of worth.

Each is a module with `cases(setting)`, a list of `worker.Case`. Only what runs on the
device imports jax, so that the program that watches over it can be light.
"""

# Name of each part's module: its share of the time. What a part does not need goes to those
# after it.
PARTS = {
    "ceilings": 4,
    "correctness": 14,
    "steps": 40,
    "pieces": 16,
    "cascades": 18,
    "soups": 8,
}
SIZES = ("full", "cpu", "small")
METHODS = ("cotrain", "nominal", "adversarial")
