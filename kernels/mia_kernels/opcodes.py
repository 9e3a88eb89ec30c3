"""The instruction set of the feature program (see :mod:`mia_kernels.program`).

A program is a table of instructions that a planner makes from the catalogue and one compiled
function interprets, a block of rows at a time. These numbers are its vocabulary.
"""

from __future__ import annotations

# --- geometry -----------------------------------------------------------------------------------
BLOCK = 256
"""Rows that one pass works on; they stay in the cache."""
WORD = 64
"""Rows of a call are cut at multiples of this, counted from its first: each block fills whole words of a bitmap."""
HISTORY = 128
"""Rows of history kept before the block in every working column: the longest look-back."""
CAPACITY = HISTORY + BLOCK
"""Rows of a working column: history, then room for a block."""
STRIDE = CAPACITY + 8
"""Numbers from one working column to the next: an odd number of cache lines, so that the same row of many
columns does not fall into the same few sets of the cache."""
LANES = 8
"""Recurrences that advance together in one pass over an input."""

# --- state header (the first floats of the state array) -------------------------------------------
ROWS = 0
"""Rows seen since the start of the series."""
POSITION = 1
"""Where the next row goes in the working columns."""
HEADER = 8

# --- working columns that every program has ------------------------------------------------------
SPARE = 0
"""Takes the output of unused lanes."""
TIME = 1
"""Seconds since 1970 UTC at which the bar is known (its close)."""
SESSION = 2
"""Days since 1970 of the Globex session's trade date."""
MINUTE = 3
"""Minutes since midnight in New York at the bar's close, 0 .. 1439."""
WEEKDAY = 4
"""0 Monday .. 6 Sunday in New York."""
MONTH_DAY = 5
"""1 .. 31."""
MONTH = 6
"""1 .. 12."""
FIRST_INPUT = 7

# --- fields of an instruction ---------------------------------------------------------------------
CODE, SOURCE_A, SOURCE_B, SOURCE_C, SOURCE_D, COUNT, STATE, INTEGERS, FLOATS, TARGETS = range(10)
FIELDS = 10

# --- instructions ---------------------------------------------------------------------------------
AVERAGE = 2
RSI = 3
ADX = 4
MACD = 5
TRUE_RANGE = 6
LOG_RETURN = 7
MOMENT_TABLE = 8
MOMENT_WINDOW = 9
MAXIMUM_TABLE = 10
MINIMUM_TABLE = 11
MAXIMUM_WINDOW = 12
MINIMUM_WINDOW = 13
STOCHASTIC = 14
TIME_DEVIATION = 15
VWAP = 17
PROFILE = 18
SESSION_VARIANCE = 19
RETURN_SINCE = 20
SESSION_SUM = 30
SESSION_RANK = 31
CLOCK_DEVIATION = 32
SEASONAL_MEAN = 33
UNCHANGED_FOR = 34
BEFORE_CHANGE = 35
TIME_WINDOW = 36
PROFILE_WINDOW = 37
TIME_SLOPE = 38
ARITHMETIC = 40
AGO = 41
PUT = 42
LOAD = 47
"""Inputs to their working columns."""
PASS = 48
"""Inputs to the output, as they are."""
AVERAGE_EACH = 43
COMOMENT_TABLE = 44
CORRELATION = 45
SLOPE = 46
OPERATIONS = 49
EXTERNAL = 99
"""A function registered at run time, called by its address."""

# --- what a moment window gives -------------------------------------------------------------------
MEAN, POPULATION_DEVIATION, SAMPLE_DEVIATION, SUM = range(4)

# --- tokens of a formula --------------------------------------------------------------------------
(
    PUSH_COLUMN,
    PUSH_NUMBER,
    PUSH_LAG,
    PUSH_AGO,
    ADD,
    SUBTRACT,
    MULTIPLY,
    DIVIDE,
    NEGATE,
    ABSOLUTE,
    SQUARE_ROOT,
    LOGARITHM,
    EXPONENTIAL,
    SIGN,
    SINE_TURN,
    COSINE_TURN,
    LESSER,
    GREATER,
    IS_MORE,
    IS_MORE_OR_EQUAL,
    CHOOSE,
    FLOOR,
    CHECK,
) = range(23)
STACK = 12
"""Deepest a formula may nest its values."""
OPERATION_FIELDS = 4
"""Places that an operation of a formula names: its result and up to three operands."""

# --- scratch rows ---------------------------------------------------------------------------------
STAGE = 62
"""Where outputs wait that are written around the cache: room for an instruction's 24 columns, then three tables."""
SCRATCH = STAGE + 3 * LANES + 3
SCRATCH_STRIDE = BLOCK + 8
"""Numbers from one scratch row to the next: an odd number of cache lines, as STRIDE."""
