# SPDX-License-Identifier: Apache-2.0
"""Compiles ordered rules to what bpf/classify.h looks up: which is the first that a packet meets?"""

from .build import Classifier, compile_classifier
from .conditions import Condition, Sets, TooBigError, rows_of

__all__ = ["Classifier", "Condition", "Sets", "TooBigError", "compile_classifier", "rows_of"]
