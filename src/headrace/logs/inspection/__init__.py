"""Inspects a log before training: schema, skew, duplication within sessions, row groups, bad rows."""

from headrace.logs.inspection.bad_rows import BadRows
from headrace.logs.inspection.budget_sizes import BudgetSize, budget_sizes
from headrace.logs.inspection.grouping import FoundGroup, GroupSample
from headrace.logs.inspection.guesses import Guess, guess_parts, make_schema
from headrace.logs.inspection.id_counter import IdCounter
from headrace.logs.inspection.inspection import Inspection, RowGroup, inspect_log
from headrace.logs.inspection.number_sketch import NumberSketch
from headrace.logs.inspection.overlap import Overlap, find_overlaps, shared_tables
from headrace.logs.inspection.profiles import ColumnProfile
from headrace.logs.inspection.ranking import Ranking, rank_numbers
from headrace.logs.inspection.schema_yaml import schema_to_yaml
from headrace.logs.inspection.session_tracker import SessionTracker
from headrace.logs.inspection.tables import print_budget_sizes, print_inspection

__all__ = [
    "BadRows",
    "BudgetSize",
    "ColumnProfile",
    "FoundGroup",
    "GroupSample",
    "Guess",
    "IdCounter",
    "Inspection",
    "NumberSketch",
    "Overlap",
    "Ranking",
    "RowGroup",
    "SessionTracker",
    "budget_sizes",
    "find_overlaps",
    "guess_parts",
    "inspect_log",
    "make_schema",
    "print_budget_sizes",
    "print_inspection",
    "rank_numbers",
    "schema_to_yaml",
    "shared_tables",
]
