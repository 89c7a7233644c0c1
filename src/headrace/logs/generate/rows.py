"""Generates the rows of a window: sessions in time order, then their columns, then labels by the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.logs.generate import columns as fill
from headrace.logs.generate.popularity import Popularity, zipf_popularity
from headrace.logs.generate.sessions import WindowSessions, lay_out_sessions
from headrace.logs.generate.spec import GenerateConfig
from headrace.logs.generate.teacher import Calibration, TeacherWeights, calibrate, click_probability
from headrace.logs.keyed_random import derive

__all__ = ["GeneratedRows", "Generator"]

CHUNK_ROWS = 65_536
CHUNK_LIST_BYTES = 64 << 20
"""Maximum size of an id list's buffer; chunks have fewer rows if lists may be very long."""

PILOT_ROWS = 65_536
"""Rows of the first window on which the teacher is calibrated."""

# Purposes of derived keys; see `derive`.
_WINDOWS, _USER, _ITEM, _SEGMENTS, _CATEGORIES, _DENSE, _LISTS, _ITEM_LISTS = range(8)


@dataclass(frozen=True)
class GeneratedRows:
    """Generated rows with their true probabilities.

    Attributes:
        batch: The rows of the log.
        probability: f64[rows], the true probability of a click.
    """

    batch: pa.RecordBatch
    probability: npt.NDArray[np.float64]


class Generator:
    """Generates any window of a synthetic log, in time order and bounded memory: about 100 bytes per row of the window.

    Args:
        config: The configuration, which alone determines every value.
    """

    def __init__(self, config: GenerateConfig) -> None:
        self.config = config
        self._key = np.uint64(derive(np.uint64(config.seed), 0))
        self._weights = TeacherWeights.of(config)
        sizes = [(config.users, config.user_zipf), (config.items, config.zipf)]
        sizes += [(size, config.zipf) for size in (*config.user_segments, *config.item_categories)]
        self._popularity = zipf_popularity(sizes, config.seed)
        self._chunk_rows = max(1, min(CHUNK_ROWS, CHUNK_LIST_BYTES // (8 * config.list_max_length)))
        self._change_ratios = np.array(config.change_ratios)
        self._groups = config.change_groups  # of user-side segments, dense columns and lists, in this order
        self.arrow_schema = _arrow_schema(config)
        self.calibration = self._calibrate()

    def window(self, window: int) -> Iterator[GeneratedRows]:
        """Yield the rows of one window in time order."""
        work = _Window(self.config, window, self._sub(_WINDOWS, window))
        first_row = self.config.window_first_row(window)
        for start in range(0, len(work.sessions.session), self._chunk_rows):
            chunk = _Chunk(work, start, min(start + self._chunk_rows, len(work.sessions.session)))
            columns = self._features(work, chunk)
            probability = click_probability(chunk.logit, self.calibration)
            labels = np.empty(chunk.rows, np.int8)
            fill.draw_labels(chunk.row_keys, probability, labels)
            row_ids = np.arange(first_row + chunk.start, first_row + chunk.stop)
            session_ids = (window << 32) | chunk.session
            arrays = [row_ids, chunk.time_ms, session_ids, labels, *columns]
            batch = pa.RecordBatch.from_arrays([pa.array(a) for a in arrays], schema=self.arrow_schema)
            yield GeneratedRows(batch, probability)

    def _calibrate(self) -> Calibration:
        work = _Window(self.config, 0, self._sub(_WINDOWS, 0))
        raw = np.empty(min(PILOT_ROWS, len(work.sessions.session)))
        for start in range(0, len(raw), self._chunk_rows):
            chunk = _Chunk(work, start, min(start + self._chunk_rows, len(raw)))
            self._features(work, chunk)
            raw[start : chunk.stop] = chunk.logit
        return calibrate(raw, signal=self.config.signal, label_rate=self.config.label_rate)

    def _features(self, work: _Window, chunk: _Chunk) -> list[npt.NDArray[np.generic] | pa.Array]:
        """The feature columns in schema order; also computes the chunk's raw logit."""
        config, weights, popularity, era = self.config, self._weights, self._popularity, work.era
        num_segments = len(config.user_segments)
        fill.advance_versions(
            chunk.row_keys,
            chunk.session,
            chunk.position,
            self._change_ratios,
            config.list_renewal_ratio,
            work.versions,
            chunk.versions,
            chunk.renewals,
        )
        users = np.empty(chunk.rows, np.int64)
        user_slots = work.user_slots(popularity)[chunk.session]
        fill.fill_replaced_ids(self._sub(_USER), user_slots, config.users, era, weights.user, users, chunk.logit)
        ids: list[npt.NDArray[np.generic] | pa.Array] = [users]
        keys = np.empty(chunk.rows, np.uint64)

        segments = [np.empty(chunk.rows, np.int64) for _ in config.user_segments]
        for c, out in enumerate(segments):
            salt = self._sub(_SEGMENTS, c)
            fill.user_side_keys(salt, users, chunk.session_keys, chunk.versions[self._groups[c]], keys)
            fill.fill_drawn_ids(keys, popularity, 2 + c, salt, era, weights.segments[c], out, chunk.logit)

        items, slots = np.empty(chunk.rows, np.int64), np.empty(chunk.rows, np.int64)
        fill.draw_slots(chunk.row_keys, 98, popularity, 1, slots)
        fill.fill_replaced_ids(self._sub(_ITEM), slots, config.items, era, weights.item, items, chunk.logit)
        categories = [np.empty(chunk.rows, np.int64) for _ in config.item_categories]
        for c, out in enumerate(categories):
            salt = self._sub(_CATEGORIES, c)
            fill.derive_all(salt, items, keys)
            table = 2 + num_segments + c
            fill.fill_drawn_ids(keys, popularity, table, salt, era, weights.categories[c], out, chunk.logit)
        fill.add_cross(
            self._sub(_SEGMENTS, 0),
            segments[0],
            self._sub(_CATEGORIES, 0),
            categories[0],
            era,
            weights.segment_category,
            chunk.logit,
        )
        ids += [*segments, items, *categories]
        return ids + self._dense(work, chunk, users, categories[0]) + self._lists(work, chunk, users, categories[0])

    def _dense(
        self, work: _Window, chunk: _Chunk, users: npt.NDArray[np.int64], categories: npt.NDArray[np.int64]
    ) -> list[npt.NDArray[np.generic] | pa.Array]:
        config, weights = self.config, self._weights
        keys = np.empty(chunk.rows, np.uint64)
        out: list[npt.NDArray[np.generic] | pa.Array] = []
        for c in range(config.user_dense + config.item_dense):
            salt = self._sub(_DENSE, c)
            if c < config.user_dense:
                versions = chunk.versions[self._groups[len(config.user_segments) + c]]
                fill.user_side_keys(salt, users, chunk.session_keys, versions, keys)
                of_side = c
            else:
                of_side = c - config.user_dense
                fill.derive_all(salt, chunk.row_keys.view(np.int64), keys)
            values = np.empty(chunk.rows, np.float32)
            fill.fill_dense(keys, of_side, float(weights.dense[c]), values, chunk.logit)
            if c == 0:
                category_salt = self._sub(_CATEGORIES, 0)
                seen = values.astype(np.float64)
                fill.add_product(seen, category_salt, categories, work.era, weights.dense_category, chunk.logit)
            out.append(values)
        return out

    def _lists(
        self, work: _Window, chunk: _Chunk, users: npt.NDArray[np.int64], categories: npt.NDArray[np.int64]
    ) -> list[npt.NDArray[np.generic] | pa.Array]:
        config, weights = self.config, self._weights
        values = np.empty(chunk.rows * config.list_max_length if config.list_names else 0, np.int64)
        pooled = np.empty(chunk.rows)
        out: list[npt.NDArray[np.generic] | pa.Array] = []
        for c in range(config.id_lists):
            salt = self._sub(_LISTS, c)
            # The first list shares its ids with the item column; the others have their own ids.
            item_salt = self._sub(_ITEM) if c == 0 else salt
            group = self._groups[len(config.user_segments) + config.user_dense + c]
            offsets = np.empty(chunk.rows + 1, np.int32)
            fill.fill_lists(
                salt,
                item_salt,
                users,
                work.shifts(users_of_sessions=work.user_slots(self._popularity), salt=salt)[chunk.session],
                chunk.versions[group],
                chunk.renewals[group],
                chunk.session_keys,
                self._popularity,
                1,
                config.list_mean_length,
                config.list_max_length,
                config.list_shifts_per_window,
                work.era,
                float(weights.lists[c]),
                offsets,
                values,
                chunk.logit,
                pooled,
            )
            if c == 0:
                category_salt = derive(self._sub(_CATEGORIES, 0), 1)
                fill.add_product(
                    pooled, np.uint64(category_salt), categories, work.era, weights.list_category, chunk.logit
                )
            # A copy, because the next list reuses the buffer.
            out.append(pa.ListArray.from_arrays(offsets, pa.array(values[: offsets[-1]].copy())))
        for c in range(config.item_lists):
            offsets = np.empty(chunk.rows + 1, np.int32)
            mean_length, salt = config.item_list_mean_length, self._sub(_ITEM_LISTS, c)
            fill.fill_item_lists(
                chunk.row_keys, salt, self._popularity, 1, mean_length, config.list_max_length, offsets, values
            )
            out.append(pa.ListArray.from_arrays(offsets, pa.array(values[: offsets[-1]].copy())))
        return out

    def _sub(self, what: int, which: int = 0) -> np.uint64:
        return np.uint64(derive(np.uint64(derive(self._key, what)), which))


class _Window:
    """The state of a window before features are generated: sessions, users, changes so far."""

    def __init__(self, config: GenerateConfig, window: int, key: np.uint64) -> None:
        self.config = config
        self.sessions: WindowSessions = lay_out_sessions(config, window, key)
        self.era = fill.Era(window, config.new_ids_ratio, config.drift_ratio)
        self.versions = np.zeros((len(self.sessions.keys), len(config.change_ratios), 2), np.int32)
        self._user_slots: npt.NDArray[np.int64] | None = None
        self._shifts: dict[int, npt.NDArray[np.int64]] = {}

    def user_slots(self, popularity: Popularity) -> npt.NDArray[np.int64]:
        """i64[sessions], the user slot of each session."""
        if self._user_slots is None:
            self._user_slots = np.empty(len(self.sessions.keys), np.int64)
            fill.draw_slots(self.sessions.keys, 97, popularity, 0, self._user_slots)
        return self._user_slots

    def shifts(self, *, users_of_sessions: npt.NDArray[np.int64], salt: np.uint64) -> npt.NDArray[np.int64]:
        """i64[sessions], ids of the list with this salt that the user has seen before the session."""
        if int(salt) not in self._shifts:
            sessions, config = self.sessions, self.config
            start_ratio = np.empty(len(sessions.keys))
            first = sessions.position == 0
            window_ms = config.window_seconds * 1000
            began = sessions.time_ms[first] - (config.start_ms + self.era.window * window_ms)
            start_ratio[sessions.session[first]] = began / window_ms
            out = np.empty(len(sessions.keys), np.int64)
            fill.count_shifts(salt, users_of_sessions, start_ratio, config.list_shifts_per_window, self.era.window, out)
            self._shifts[int(salt)] = out
        return self._shifts[int(salt)]


class _Chunk:
    """Rows `start:stop` of a window, and buffers for their columns."""

    def __init__(self, work: _Window, start: int, stop: int) -> None:
        sessions = work.sessions
        self.start, self.stop, self.rows = start, stop, stop - start
        self.session = np.ascontiguousarray(sessions.session[start:stop])
        self.position = np.ascontiguousarray(sessions.position[start:stop])
        self.time_ms = sessions.time_ms[start:stop]
        self.session_keys = sessions.keys[self.session]
        self.row_keys = np.empty(self.rows, np.uint64)
        fill.derive_rows(self.session_keys, self.position, self.row_keys)
        self.versions = np.empty((work.versions.shape[1], self.rows), np.int32)
        self.renewals = np.empty_like(self.versions)
        self.logit = np.zeros(self.rows)


def _arrow_schema(config: GenerateConfig) -> pa.Schema:
    fields = [("row", pa.int64()), ("timestamp", pa.int64()), ("session", pa.int64()), ("click", pa.int8())]
    fields += [(name, pa.int64()) for name in config.id_names]
    fields += [(name, pa.float32()) for name in config.dense_names]
    fields += [(name, pa.list_(pa.int64())) for name in config.list_names]
    return pa.schema(fields)
