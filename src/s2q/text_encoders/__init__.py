"""Text encoders in few bits: weights rounded to nearest or by GPTQ, written as plain transformers folders."""
