"""The vendor's ``ttnn`` on a simulator by other authors, as a judge of the exact emulation: ``make judge-tt``."""
