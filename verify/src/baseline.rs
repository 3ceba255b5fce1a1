//! What exports reached before, kept in a file beside the code that makes them.
//!
//! Owns `neuroconv-baseline.json` and the comparison with it. A baseline is only compared with
//! what was measured in the same way: same source, same texts, same protocol, all of the text.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::gate::{Check, CheckClass, CheckStatus};
use crate::report::{CorpusRecord, Report, finite};

/// The version of the file.
pub const BASELINE_VERSION: u32 = 1;

/// The file: one entry per export.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// [`BASELINE_VERSION`].
    pub schema_version: u32,
    /// By `SOURCE/RECIPE`.
    pub entries: BTreeMap<String, Entry>,
}

impl Default for Baseline {
    fn default() -> Self {
        Baseline {
            schema_version: BASELINE_VERSION,
            entries: BTreeMap::new(),
        }
    }
}

/// What one export reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// SHA-256 of each weight file of the source, in order.
    pub source_sha256: Vec<String>,
    /// The texts and how they were cut.
    pub corpora: Vec<CorpusRecord>,
    /// Perplexity over that of the source.
    #[serde(serialize_with = "finite")]
    pub ppl_ratio: f64,
    /// Mean divergence from the source.
    #[serde(serialize_with = "finite")]
    pub kld_mean: f64,
    /// Share of tokens with the same best guess.
    #[serde(serialize_with = "finite")]
    pub top1: f64,
    /// Bytes of the weight files.
    pub size_bytes: u64,
}

impl Entry {
    /// What a report says.
    pub fn of(report: &Report) -> Self {
        let weights = report.source.files.iter();
        let weights = weights.filter(|f| f.path.ends_with(".safetensors"));
        Entry {
            source_sha256: weights.map(|f| f.sha256.clone()).collect(),
            corpora: report.corpora.clone(),
            ppl_ratio: report.metrics.ppl_ratio.value,
            kld_mean: report.metrics.kld_mean.value,
            top1: report.metrics.top1.value,
            size_bytes: report.artifact.size_bytes,
        }
    }

    /// One check per figure: how much worse it became, as a share of what it was, against the
    /// `drift` allowed. The check on agreement counts points of a hundred, not shares of a share.
    pub fn checks(&self, now: &Entry, drift: f64) -> Result<Vec<Check>, Error> {
        let same = self.source_sha256 == now.source_sha256 && self.corpora == now.corpora;
        if !same {
            return Err(Error::OtherBaseline {
                what: if self.source_sha256 == now.source_sha256 {
                    "text, protocol or amount of text"
                } else {
                    "source weights"
                },
            });
        }
        let grown = |now: f64, then: f64| {
            if now <= then { 0.0 } else { now / then - 1.0 }
        };
        let check = |id: &str, observed: f64| {
            let within = observed.is_finite() && drift.is_finite() && observed <= drift;
            Check {
                id: format!("baseline.{id}"),
                class: CheckClass::Quality,
                status: if within {
                    CheckStatus::Pass
                } else {
                    CheckStatus::Fail
                },
                limit: drift,
                // JSON has no infinity: something from nothing counts as all.
                observed: if observed.is_finite() {
                    observed
                } else {
                    f64::MAX
                },
                waived: false,
                detail: None,
            }
        };
        Ok(vec![
            check("ppl_ratio", grown(now.ppl_ratio, self.ppl_ratio)),
            check("kld_mean", grown(now.kld_mean, self.kld_mean)),
            check("top1", (self.top1 - now.top1).max(0.0)),
            check("size", grown(now.size_bytes as f64, self.size_bytes as f64)),
        ])
    }
}

impl Baseline {
    /// Reads the file.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let baseline: Baseline = serde_json::from_slice(json).map_err(Error::NotABaseline)?;
        if baseline.schema_version == BASELINE_VERSION {
            return Ok(baseline);
        }
        let found = format!("found version {}", baseline.schema_version);
        Err(Error::NotABaseline(serde::de::Error::custom(found)))
    }

    /// The file's text.
    pub fn to_json(&self) -> Result<String, Error> {
        let mut text = serde_json::to_string_pretty(self).map_err(Error::Report)?;
        text.push('\n');
        Ok(text)
    }

    /// The entry `key`.
    pub fn entry(&self, key: &str) -> Result<&Entry, Error> {
        self.entries.get(key).ok_or_else(|| Error::NoBaseline {
            key: key.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn figures_may_drift_so_far_and_improve_freely() {
        let then = Entry::of(&testing::report());
        let changed = |ratio: f64, kld: f64, top1: f64, size: u64| Entry {
            ppl_ratio: ratio,
            kld_mean: kld,
            top1,
            size_bytes: size,
            ..then.clone()
        };
        let failed = |now: &Entry| -> Vec<String> {
            let checks = then.checks(now, 0.02).unwrap();
            let failed = checks.into_iter().filter(|c| c.status == CheckStatus::Fail);
            failed.map(|c| c.id).collect()
        };
        let Entry {
            ppl_ratio: r,
            kld_mean: k,
            top1: t,
            size_bytes: s,
            ..
        } = then.clone();
        assert!(failed(&then).is_empty());
        assert!(failed(&changed(r * 1.019, k * 0.1, 1.0, s / 2)).is_empty());
        assert_eq!(failed(&changed(r * 1.021, k, t, s)), ["baseline.ppl_ratio"]);
        assert_eq!(failed(&changed(r, k * 1.03, t, s)), ["baseline.kld_mean"]);
        assert_eq!(failed(&changed(r, k, t - 0.03, s)), ["baseline.top1"]);
        assert_eq!(failed(&changed(r, k, t, s * 2)), ["baseline.size"]);
        assert_eq!(failed(&changed(f64::NAN, k, t, s)), ["baseline.ppl_ratio"]);
    }

    #[test]
    fn only_like_is_compared_with_like() {
        let then = Entry::of(&testing::report());
        let mut other = then.clone();
        other.corpora[0].tokens += 1;
        assert!(matches!(
            then.checks(&other, 0.02),
            Err(Error::OtherBaseline { .. })
        ));
        let mut other = then.clone();
        other.source_sha256[0].push('0');
        assert!(then.checks(&other, 0.02).is_err());
    }

    #[test]
    fn the_file_round_trips_and_others_are_refused() {
        let mut baseline = Baseline::default();
        let entry = Entry::of(&testing::report());
        baseline.entries.insert("a/int4".to_owned(), entry);
        let text = baseline.to_json().unwrap();
        assert_eq!(Baseline::parse(text.as_bytes()).unwrap(), baseline);
        assert!(matches!(baseline.entry("b"), Err(Error::NoBaseline { .. })));
        for bad in ["{}", "[]", "", &text.replacen(": 1", ": 2", 1)] {
            assert!(matches!(
                Baseline::parse(bad.as_bytes()),
                Err(Error::NotABaseline(_))
            ));
        }
    }
}
