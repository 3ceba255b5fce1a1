//! How ternary levels are told from zero, and how recipes and the command line write it.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Error;
use crate::suggest::shown;

/// Which weights of a group become zero when three levels must do. In every case the scale is
/// then the one of least squared error.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Threshold {
    /// The threshold of least squared error, found exactly.
    #[default]
    Mse,
    /// 0.7 of the mean magnitude.
    Twn,
    /// All three levels equally frequent, the most information per code.
    EntropyMax,
    /// This share of the weights, above 0 and below 1.
    Sparsity(f64),
    /// Least squared error plus this many times the entropy of the codes.
    Rd(f64),
}

impl FromStr for Threshold {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || Error::Threshold { found: shown(text) };
        let number = |digits: &str| digits.parse::<f64>().ok().filter(|n| n.is_finite());
        match text.split_once(':') {
            None => match text {
                "mse" => Ok(Threshold::Mse),
                "twn" => Ok(Threshold::Twn),
                "entropy-max" => Ok(Threshold::EntropyMax),
                _ => Err(bad()),
            },
            Some(("sparsity", share)) => {
                let share = number(share).filter(|s| *s > 0.0 && *s < 1.0);
                share.map(Threshold::Sparsity).ok_or_else(bad)
            }
            Some(("rd", lambda)) => number(lambda)
                .filter(|l| *l >= 0.0)
                .map(Threshold::Rd)
                .ok_or_else(bad),
            Some(_) => Err(bad()),
        }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Threshold::Mse => f.write_str("mse"),
            Threshold::Twn => f.write_str("twn"),
            Threshold::EntropyMax => f.write_str("entropy-max"),
            Threshold::Sparsity(share) => write!(f, "sparsity:{share}"),
            Threshold::Rd(lambda) => write!(f, "rd:{lambda}"),
        }
    }
}

impl Serialize for Threshold {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_round_trip_and_bad_ones_are_refused() {
        for text in [
            "mse",
            "twn",
            "entropy-max",
            "sparsity:0.5",
            "rd:0",
            "rd:0.001",
        ] {
            assert_eq!(text.parse::<Threshold>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "Mse",
            "sparsity",
            "sparsity:",
            "sparsity:0",
            "sparsity:1",
            "sparsity:nan",
            "rd:-1",
            "rd:inf",
            "mse:1",
        ] {
            let error = bad.parse::<Threshold>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("`{bad}` is not a ternary threshold")
            );
            assert!(error.hint().unwrap().contains("entropy-max"));
        }
    }
}
