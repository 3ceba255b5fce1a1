//! Work on many windows at once, one window per thread.
//!
//! The steps inside a window are parallel themselves. In one shared pool a thread that waits for
//! such a step would begin another window, and in the end all windows would be in memory at once.
//! So each window runs from beginning to end in a pool that has no other: as many pools as
//! windows can run at once, and the threads shared out among them.

use std::thread;

use rayon::ThreadPoolBuilder;

use crate::Error;

/// `act(i)` for each `i` in `0..count`, in order; at most as many at once as there are threads,
/// and with fewer windows than threads each window has several.
pub(crate) fn each_window<T: Send>(
    count: usize,
    act: impl Fn(usize) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let threads = rayon::current_num_threads();
    let workers = threads.min(count).max(1);
    let act = &act;
    let work = |worker: usize| -> Result<Vec<T>, Error> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads / workers)
            .build()
            .map_err(Error::Threads)?;
        pool.install(|| (worker..count).step_by(workers).map(act).collect())
    };
    let work = &work;
    let parts: Vec<Result<Vec<T>, Error>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|worker| scope.spawn(move || work(worker)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    });
    let mut parts = parts
        .into_iter()
        .map(|part| Ok(part?.into_iter()))
        .collect::<Result<Vec<_>, Error>>()?;
    let next = |i: usize| {
        parts[i % workers]
            .next()
            .expect("each worker returns one result per window")
    };
    Ok((0..count).map(next).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rayon::prelude::*;

    use super::*;

    #[test]
    fn results_come_in_order_and_errors_come_back() {
        for count in [0, 1, 2, 7] {
            let found = each_window(count, |i| Ok(i * i)).unwrap();
            assert_eq!(found, (0..count).map(|i| i * i).collect::<Vec<_>>());
        }
        let failed = each_window(9, |i| {
            if i == 5 {
                Err(Error::NotFinite { window: i })
            } else {
                Ok(i)
            }
        });
        assert!(matches!(failed, Err(Error::NotFinite { window: 5 })));
    }

    /// With a shared pool this reaches far more than one window per thread.
    #[test]
    fn no_more_windows_are_begun_than_there_are_threads() {
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        each_window(64, |i| {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let sum: usize = (0..1000).into_par_iter().map(|x| x ^ i).sum();
            running.fetch_sub(1, Ordering::SeqCst);
            Ok(sum)
        })
        .unwrap();
        assert!(most.into_inner() <= rayon::current_num_threads());
    }
}
