//! Numbers that JSON can say: serialization refuses the others.

use serde::{Serialize, Serializer};

/// Serializes numbers, refusing those that JSON has no word for.
pub(crate) fn finite<T: Finite, S: Serializer>(value: &T, out: S) -> Result<S::Ok, S::Error> {
    if value.all_finite() {
        value.serialize(out)
    } else {
        Err(serde::ser::Error::custom("a number is not finite"))
    }
}

/// Numbers that may or may not be finite.
pub(crate) trait Finite: Serialize {
    /// Whether each of them is.
    fn all_finite(&self) -> bool;
}

impl Finite for f64 {
    fn all_finite(&self) -> bool {
        self.is_finite()
    }
}

impl Finite for Option<f64> {
    fn all_finite(&self) -> bool {
        self.is_none_or(f64::is_finite)
    }
}

impl<T: Finite> Finite for Vec<T> {
    fn all_finite(&self) -> bool {
        self.iter().all(Finite::all_finite)
    }
}
