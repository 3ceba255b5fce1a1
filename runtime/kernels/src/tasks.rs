//! Cutting outputs `[t][n]` into column ranges that threads fill independently.

use std::ops::Range;

use rayon::prelude::*;

/// Below this many bytes of weights times rows of activations one thread is faster.
const PARALLEL_WORK: usize = 1 << 17;
/// Tasks per thread: enough for a late thread to be helped, few enough to cost nothing.
const TASKS_PER_THREAD: usize = 4;

/// An output `[t][n]` that is to be filled.
pub(crate) struct Output<'y> {
    pub(crate) y_tn: &'y mut [f32],
    pub(crate) n: usize,
    /// Columns of a block, which is never cut.
    pub(crate) width: usize,
    /// A measure of all work in bytes.
    pub(crate) work: usize,
}

/// Runs `fill(output, blocks, columns)` over ranges of the blocks that make up the columns of each
/// output; `columns[t]` is row `t` of the output, cut to these blocks.
///
/// What is computed must not depend on the ranges.
pub(crate) fn for_column_ranges(
    outputs: Vec<Output<'_>>,
    fill: impl Fn(usize, Range<usize>, &mut [&mut [f32]]) + Sync,
) {
    let work = outputs.iter().map(|output| output.work).sum::<usize>();
    let threads = rayon::current_num_threads();
    if threads == 1 || work < PARALLEL_WORK {
        for (index, Output { y_tn, n, width, .. }) in outputs.into_iter().enumerate() {
            let mut columns: Vec<&mut [f32]> = y_tn.chunks_mut(n).collect();
            fill(index, 0..n.div_ceil(width), &mut columns);
        }
        return;
    }
    let per_task = work.div_ceil(threads * TASKS_PER_THREAD);
    let mut tasks = Vec::new();
    for (index, output) in outputs.into_iter().enumerate() {
        let Output {
            y_tn,
            n,
            width,
            work,
        } = output;
        let blocks = n.div_ceil(width);
        let step = blocks.div_ceil(work.div_ceil(per_task).max(1)).max(1);
        let first = tasks.len();
        tasks.extend((0..blocks).step_by(step).map(|start| Task {
            output: index,
            blocks: start..blocks.min(start + step),
            columns: Vec::new(),
        }));
        for row in y_tn.chunks_mut(n) {
            for (task, columns) in tasks[first..].iter_mut().zip(row.chunks_mut(step * width)) {
                task.columns.push(columns);
            }
        }
    }
    tasks
        .into_par_iter()
        .for_each(|mut task| fill(task.output, task.blocks, &mut task.columns));
}

/// Some blocks of an output.
struct Task<'y> {
    output: usize,
    blocks: Range<usize>,
    columns: Vec<&'y mut [f32]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_is_visited_once() {
        for (t, n, width) in [(1, 1, 16), (1, 100, 16), (3, 33, 16), (5, 64, 4), (2, 7, 1)] {
            for work in [0, PARALLEL_WORK] {
                // Two outputs, the second a block wider.
                let wide = n + width;
                let (mut y, mut z) = (vec![0.0; t * n], vec![0.0; t * wide]);
                let outputs = [(&mut y, n), (&mut z, wide)].map(|(y_tn, n)| Output {
                    y_tn,
                    n,
                    width,
                    work,
                });
                for_column_ranges(outputs.into(), |output, blocks, columns| {
                    let n = [n, wide][output];
                    assert_eq!(columns.len(), t);
                    let start = blocks.start * width;
                    for row in columns {
                        assert_eq!(row.len(), n.min(blocks.end * width) - start);
                        for (i, y) in row.iter_mut().enumerate() {
                            *y += (start + i) as f32;
                        }
                    }
                });
                for (y, n) in [(y, n), (z, wide)] {
                    let expected: Vec<f32> = (0..t * n).map(|i| (i % n) as f32).collect();
                    assert_eq!(y, expected, "{t} {n} {width} {work}");
                }
            }
        }
    }
}
