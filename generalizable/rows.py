"""Which row of the selector's pool remembers which instance."""

from collections.abc import Sequence


class Rows:
    """A bounded table from keys of instances to rows; when it is full the instance not seen for longest gives way."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._rows: dict[int, int] = {}  # in the order in which instances were last seen

    def assign(self, keys: Sequence[int]) -> tuple[list[int], list[int]]:
        """The row of each instance of a batch, and those of these rows that held another one or none before.

        A batch has at most ``capacity`` instances.
        """
        rows, fresh = [], []
        for key in keys:
            row = self._rows.pop(key, None)
            if row is None:
                row = len(self._rows) if len(self._rows) < self.capacity else self._rows.pop(next(iter(self._rows)))
                fresh.append(row)
            self._rows[key] = row
            rows.append(row)
        return rows, fresh

    def state_dict(self) -> dict[str, list[int]]:
        """The table, in order."""
        return {"keys": list(self._rows), "rows": list(self._rows.values())}

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        """The table that ``state_dict`` returned."""
        self._rows = dict(zip(state["keys"], state["rows"], strict=True))
