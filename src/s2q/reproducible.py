"""The same command gives the same bits, on one machine and with one number of threads."""

import os


def ask_for_the_same_bits() -> None:
    """Ask MKL for results that do not depend on where a tensor happens to lie in memory.

    On some CPUs (seen on AMD EPYC) its float32 products otherwise differ in the last bits from one run to the next. MKL reads
    the variable at its first product, so this is called before; one that is set already is left alone. It cost nothing that
    could be measured.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
