"""Batches, the step that trains on one, and the losses that come back."""

from dataclasses import dataclass, field
