"""Links between the words of one pair of sentences, cell by cell: what is done for many pairs is compared with it."""

from __future__ import annotations

Table = list[list[float]]
Links = set[tuple[int, int]]


def best_of_both(by_row: Table, by_column: Table, cells: Links) -> Links:
    """Cells that are the first largest of `cells` in their row of one table and in their column of the other."""
    found = set()
    for i, j in cells:
        row = max((c for c in sorted(cells) if c[0] == i), key=lambda c: by_row[c[0]][c[1]])
        column = max((c for c in sorted(cells) if c[1] == j), key=lambda c: by_column[c[0]][c[1]])
        if row == column == (i, j):
            found.add((i, j))
    return found


def reference_itermax(table: Table, rounds: int) -> Links:
    rows, columns = range(len(table)), range(len(table[0]))
    links = best_of_both(table, table, {(i, j) for i in rows for j in columns})
    for _ in range(rounds - 1):
        free_rows, free_columns = set(rows) - {i for i, _ in links}, set(columns) - {j for _, j in links}
        if min(len(rows), len(columns)) <= 2 or not free_rows or not free_columns:
            break
        cells = {(i, j) for i in rows for j in columns if i in free_rows or j in free_columns}
        weighed = [[table[i][j] * (1.0 if i in free_rows and j in free_columns else 0.9) for j in columns] for i in rows]
        links |= best_of_both(weighed, weighed, cells)
    return links


def reference_sinkhorn(table: Table, iterations: int) -> tuple[Table, Table]:
    by_row = [[value if value > 0 else 1e-6 for value in row] for row in table]
    by_column = by_row
    for _ in range(iterations):
        sums = [sum(column) for column in zip(*by_row, strict=True)]
        by_column = [[value / total for value, total in zip(row, sums, strict=True)] for row in by_row]
        by_row = [[value / sum(row) for value in row] for row in by_column]
    return by_row, by_column
