"""How few bits a code may have, and how many: they are held in int8. Apart, so that recipes can be read without torch."""

MIN_BITS, MAX_BITS = 2, 8
