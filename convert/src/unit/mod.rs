//! A conversion in parts that need nothing of each other, for many machines.
//!
//! A unit is a run of layers. It reads only the files that hold them, and writes a folder that says
//! what it was made of. A merge is the whole conversion again, but its tensors are taken from units;
//! so it is planned, resumed, measured, judged and emitted like any other, to the same bytes.

mod error;
mod merge;
mod work;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use neuroconv_format::writer::SafetensorsLayout;

use crate::Error;
use crate::plan::{Plan, PlannedTensor, REPORTS_BYTES, entries};

pub use error::UnitError;
pub(crate) use merge::{UnitFiles, UnitTensor};
pub use merge::{recipe_of, units_beside};
pub use work::{convert_unit, unit_folder};

/// One of the parts of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unit {
    /// Which, from 1.
    index: usize,
    /// Of how many.
    of: usize,
}

impl Unit {
    /// All parts of a conversion in `of`.
    pub fn all(of: usize) -> impl Iterator<Item = Unit> {
        (1..=of).map(move |index| Unit { index, of })
    }
}

impl Unit {
    /// This part of `windows` of a calibration text: all parts follow each other, and their lengths differ
    /// by one at most. Refused where there are more parts than windows.
    pub fn windows(self, windows: usize) -> Result<Range<usize>, UnitError> {
        if self.of > windows {
            let parts = self.of;
            return Err(UnitError::TooManyParts { parts, windows });
        }
        // The remainder goes to the first parts, so that no product leaves its range.
        let (each, longer) = (windows / self.of, windows % self.of);
        let start = |index: usize| index * each + index.min(longer);
        Ok(start(self.index - 1)..start(self.index))
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl FromStr for Unit {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let parts = text.split_once('/');
        let numbers = parts.and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, of)) if (1..=of).contains(&index) => Ok(Unit { index, of }),
            _ => Err(UnitError::Spelled {
                text: text.to_owned(),
            }),
        }
    }
}

impl Plan {
    /// The part of this plan that is `unit`'s. Refused where a tensor needs the result of another, and
    /// where there are more units than layers and tables.
    pub fn unit(&self, unit: Unit) -> Result<Plan, Error> {
        let why = if self.learns() {
            Some("matrices are rounded with feedback from the layers before them")
        } else if self.mla.is_some() {
            Some("converted attention learns from the layers before it")
        } else if self.wants_survey() {
            Some("which columns lie apart is found in the whole model")
        } else {
            None
        };
        if let Some(why) = why {
            return Err(UnitError::NotSplit { why }.into());
        }
        let mut plan = self.clone();
        let pieces = self.pieces();
        let most = pieces.len();
        if unit.of > most {
            let units = unit.of;
            return Err(UnitError::TooMany { units, most }.into());
        }
        let own = shares(&pieces, unit.of).nth(unit.index - 1);
        let own = own.expect("there is a share for every unit");
        plan.tensors = self.tensors[own].to_vec();
        plan.layout = SafetensorsLayout::new(plan.tensors.iter().flat_map(entries).collect())?;
        plan.weights_bytes = plan.layout.file_size();
        plan.disk_bytes = plan.weights_bytes + REPORTS_BYTES;
        Ok(plan)
    }

    /// What stays together, in storage order: the number of tensors and of their weights.
    fn pieces(&self) -> Vec<(usize, u64)> {
        let by_layer = self
            .tensors
            .chunk_by(|a, b| a.id.layer.is_some() && a.id.layer == b.id.layer);
        by_layer
            .map(|piece| (piece.len(), piece.iter().map(PlannedTensor::elements).sum()))
            .collect()
    }
}

/// The tensors of each of `units`, none of them empty: each takes pieces until it has its share of what
/// is left, as long as enough are left for the others.
fn shares(pieces: &[(usize, u64)], units: usize) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut left: u64 = pieces.iter().map(|(_, weights)| weights).sum();
    let mut pieces = pieces.iter().peekable();
    let mut at = 0;
    (0..units).map(move |unit| {
        let (start, share) = (at, left.div_ceil((units - unit) as u64));
        let mut taken = 0;
        while let Some((tensors, weights)) = pieces.peek() {
            let others = units - unit - 1;
            let enough = taken > 0 && (pieces.len() <= others || taken + weights / 2 > share);
            if enough && others > 0 {
                break;
            }
            at += tensors;
            taken += weights;
            pieces.next();
        }
        left -= taken;
        start..at
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_counted_from_one() {
        let unit: Unit = "2/4".parse().unwrap();
        assert_eq!(
            (unit.index, unit.of, unit.to_string()),
            (2, 4, "2/4".to_owned())
        );
        for text in ["", "0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/2"] {
            assert!(text.parse::<Unit>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn windows_are_shared_in_order_and_evenly(windows in 1usize..100, parts in 1usize..110) {
            let found: Result<Vec<_>, _> = Unit::all(parts).map(|part| part.windows(windows)).collect();
            let Ok(found) = found else {
                prop_assert!(parts > windows);
                return Ok(());
            };
            let lengths: Vec<usize> = found.iter().map(Range::len).collect();
            prop_assert_eq!(found.into_iter().flatten().collect::<Vec<_>>(), (0..windows).collect::<Vec<_>>());
            let (least, most) = (lengths.iter().min().unwrap(), lengths.iter().max().unwrap());
            prop_assert!(*least > 0 && most - least <= 1);
        }

        #[test]
        fn every_piece_is_in_one_unit_and_no_unit_is_empty(
            pieces in prop::collection::vec((1usize..5, 1u64..1000), 1..40), units in 1usize..40
        ) {
            prop_assume!(units <= pieces.len());
            let found: Vec<_> = shares(&pieces, units).collect();
            let total: usize = pieces.iter().map(|p| p.0).sum();
            prop_assert_eq!(found.len(), units);
            prop_assert_eq!((found[0].start, found[units - 1].end), (0, total));
            prop_assert!(found.windows(2).all(|w| w[0].end == w[1].start));
            prop_assert!(found.iter().all(|range| !range.is_empty()));
        }
    }

    #[test]
    fn equal_layers_are_shared_evenly() {
        let pieces = [(1, 100); 32];
        let lengths: Vec<usize> = shares(&pieces, 4).map(|range| range.len()).collect();
        assert_eq!(lengths, [8, 8, 8, 8]);
    }
}
