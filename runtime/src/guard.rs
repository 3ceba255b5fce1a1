//! Runs foreign library code on untrusted input so that a panic becomes an error.
//!
//! Owns the boundary, not the checks before it: what is known to go wrong is refused earlier
//! by whoever calls.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; a panic in it prints nothing and becomes the text of the panic.
///
/// The process-wide hook is wrapped once; the wrapper only swallows panics of threads that are
/// inside this function, all others reach the hook that was there before.
pub(crate) fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static WRAP_HOOK: Once = Once::new();
    WRAP_HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                previous(info);
            }
        }));
    });
    let outer = QUIET.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    QUIET.set(outer);
    result.map_err(|payload| text_of(payload.as_ref()))
}

fn text_of(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "unknown panic".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_text_and_a_value_passes() {
        assert_eq!(quietly(|| 3), Ok(3));
        let formatted: Result<(), String> = quietly(|| panic!("no {}", 7));
        assert_eq!(formatted, Err("no 7".to_owned()));
        let plain: Result<(), String> = quietly(|| panic!("plain"));
        assert_eq!(plain, Err("plain".to_owned()));
        assert!(!QUIET.get());
    }
}
