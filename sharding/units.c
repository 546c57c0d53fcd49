#include "sharding.h"
#include <stdlib.h>
#include <string.h>

Rows part_rows(int N, int part, int parts)
{
    int from = (int)((int64_t)N * part / parts), to = (int)((int64_t)N * (part + 1) / parts);
    return (Rows){from, to - from};
}

void units_open(Units *u, const ShardTensor *t, int n, int n_units, int parts)
{
    *u = (Units){.parts = parts, .n_units = n_units, .n = n, .t = t};
    u->order = xcalloc((size_t)n + 1, sizeof *u->order);
    u->first = xcalloc((size_t)n_units + 1, sizeof *u->first);
    for (int i = 0; i < n; i++) u->first[t[i].unit + 1]++;
    for (int k = 0; k < n_units; k++) {
        u->most = MAX(u->most, u->first[k + 1]);
        u->first[k + 1] += u->first[k];
    }
    int *next = xcalloc((size_t)n_units + 1, sizeof *next);
    memcpy(next, u->first, ((size_t)n_units + 1) * sizeof *next);
    for (int sum = 0; sum < SUM_COUNT; sum++)
        for (int i = 0; i < n; i++)
            if (t[i].sum == (GradSum)sum) u->order[next[t[i].unit]++] = i;
    free(next);
}

void units_close(Units *u)
{
    free(u->order);
    free(u->first);
    *u = (Units){0};
}

size_t unit_elements(const Units *u, int unit)
{
    size_t n = 0;
    for (int j = u->first[unit]; j < u->first[unit + 1]; j++) {
        const ShardTensor *t = &u->t[u->order[j]];
        n += (size_t)t->N * (size_t)t->K;
    }
    return n;
}

int unit_chunks(const Units *u, int unit)
{
    if (u->first[unit + 1] - u->first[unit] != 1) return 1;
    return (int)MAX((unit_elements(u, unit) + UNIT_ELEMENTS - 1) / UNIT_ELEMENTS, 1);
}

// Of each part, the rows from chunk * step on, where the longest part has step * chunks rows or a few less.
static void lay_out(const Units *u, int unit, int chunk, int chunks, Piece *piece, size_t *start)
{
    size_t at = 0;
    for (int part = 0; part < u->parts; part++) {
        start[part] = at;
        for (int j = u->first[unit]; j < u->first[unit + 1]; j++) {
            const ShardTensor *t = &u->t[u->order[j]];
            const int longest = (t->N + u->parts - 1) / u->parts, step = (longest + chunks - 1) / chunks;
            Rows r = part_rows(t->N, part, u->parts);
            int from = MIN(chunk * step, r.rows), to = MIN(from + step, r.rows);
            *piece++ = (Piece){.tensor = u->order[j], .row0 = r.row0 + from, .rows = to - from, .at = at};
            at += (size_t)(to - from) * (size_t)t->K;
        }
    }
    start[u->parts] = at;
}

void unit_chunk(const Units *u, int unit, int chunk, Piece *piece, size_t *start)
{
    lay_out(u, unit, chunk, unit_chunks(u, unit), piece, start);
}

void unit_whole(const Units *u, int unit, Piece *piece, size_t *start)
{
    lay_out(u, unit, 0, 1, piece, start);
}

size_t units_largest(const Units *u)
{
    size_t largest = 0, *start = xcalloc((size_t)u->parts + 1, sizeof *start);
    Piece *piece = xcalloc((size_t)u->parts * (size_t)u->most + 1, sizeof *piece);
    for (int k = 0; k < u->n_units; k++) {
        unit_chunk(u, k, 0, piece, start); // the first chunk is the largest
        largest = MAX(largest, start[u->parts]);
    }
    free(piece);
    free(start);
    return largest;
}
