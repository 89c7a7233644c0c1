"""Replays placement policies over streams of rows, without training: what moves, when, and whether reads are fresh."""

from headrace.placement.replay.copies import Copies, InvalidPlan
from headrace.placement.replay.engine import ReplayResult, replay
from headrace.placement.replay.movement import ALL, SHARD, Action, Drop, Kind, Move, Plan, RowBytes
from headrace.placement.replay.policy import Knowledge, PlacementPolicy, Setting, StepRows
from headrace.placement.replay.stream import NEVER, GlobalBatch, RowStream
from headrace.placement.replay.synthetic import zipf_stream
from headrace.placement.replay.traffic import Traffic

__all__ = [
    "ALL",
    "NEVER",
    "SHARD",
    "Action",
    "Copies",
    "Drop",
    "GlobalBatch",
    "InvalidPlan",
    "Kind",
    "Knowledge",
    "Move",
    "PlacementPolicy",
    "Plan",
    "ReplayResult",
    "RowBytes",
    "RowStream",
    "Setting",
    "StepRows",
    "Traffic",
    "replay",
    "zipf_stream",
]
