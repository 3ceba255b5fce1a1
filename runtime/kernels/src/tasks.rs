//! Cutting an output `[t][n]` into column ranges that threads fill independently.

use std::ops::Range;

use rayon::prelude::*;

/// Below this many bytes of weights times rows of activations one thread is faster.
const PARALLEL_WORK: usize = 1 << 17;
/// Tasks per thread: enough for a late thread to be helped, few enough to cost nothing.
const TASKS_PER_THREAD: usize = 4;

/// Runs `fill(blocks, columns)` over ranges of the `blocks` blocks of `width` columns that make up
/// the `n` columns of `y_tn`; `columns[t]` is row `t` of the output, cut to these blocks.
///
/// `work` is a measure of all work in bytes. What is computed must not depend on the ranges.
pub(crate) fn for_column_ranges(
    y_tn: &mut [f32],
    n: usize,
    width: usize,
    work: usize,
    fill: impl Fn(Range<usize>, &mut [&mut [f32]]) + Sync,
) {
    let blocks = n.div_ceil(width);
    let threads = rayon::current_num_threads();
    if threads == 1 || work < PARALLEL_WORK || blocks < 2 {
        let mut columns: Vec<&mut [f32]> = y_tn.chunks_mut(n).collect();
        fill(0..blocks, &mut columns);
        return;
    }
    let per_task = blocks.div_ceil(threads * TASKS_PER_THREAD);
    let mut tasks: Vec<Vec<&mut [f32]>> =
        (0..blocks.div_ceil(per_task)).map(|_| Vec::new()).collect();
    for row in y_tn.chunks_mut(n) {
        for (task, columns) in tasks.iter_mut().zip(row.chunks_mut(per_task * width)) {
            task.push(columns);
        }
    }
    tasks
        .into_par_iter()
        .enumerate()
        .for_each(|(i, mut columns)| {
            let first = i * per_task;
            fill(first..blocks.min(first + per_task), &mut columns);
        });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_is_visited_once() {
        for (t, n, width) in [(1, 1, 16), (1, 100, 16), (3, 33, 16), (5, 64, 4), (2, 7, 1)] {
            for work in [0, PARALLEL_WORK] {
                let mut y = vec![0.0; t * n];
                for_column_ranges(&mut y, n, width, work, |blocks, columns| {
                    assert_eq!(columns.len(), t);
                    let start = blocks.start * width;
                    for row in columns {
                        assert_eq!(row.len(), n.min(blocks.end * width) - start);
                        for (i, y) in row.iter_mut().enumerate() {
                            *y += (start + i) as f32;
                        }
                    }
                });
                let expected: Vec<f32> = (0..t * n).map(|i| (i % n) as f32).collect();
                assert_eq!(y, expected, "{t} {n} {width} {work}");
            }
        }
    }
}
