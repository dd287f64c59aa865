"""What we know of architectures: families as data, blocks replayed one at a time, attention seen from outside."""

from s2q.models import families
from s2q.models.family import Family, register
from s2q.models.lookup import resolve

__all__ = ["Family", "families", "register", "resolve"]
