//! The instruction sets and the choice of one, made once per process.

use std::sync::OnceLock;

use crate::error::Error;
use crate::selftest;

/// An instruction set that this processor has; holding one is the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Scalar,
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "x86 only"))]
    Avx2,
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "x86 only"))]
    AvxVnni,
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "x86 only"))]
    Avx512Vnni,
}

/// Every instruction set with its name, slowest first.
const NAMES: [(&str, Kind); 4] = [
    ("scalar", Kind::Scalar),
    ("avx2", Kind::Avx2),
    ("avxvnni", Kind::AvxVnni),
    ("avx512vnni", Kind::Avx512Vnni),
];

impl Isa {
    /// Plain Rust, on every processor: the truth that the others must equal.
    pub const SCALAR: Isa = Isa(Kind::Scalar);

    /// The instruction sets that this processor has, slowest first.
    pub fn available() -> Vec<Isa> {
        NAMES
            .iter()
            .filter(|(_, kind)| detected(*kind))
            .map(|(_, kind)| Isa(*kind))
            .collect()
    }

    /// The name that `NEUROCONV_ISA` takes.
    pub fn name(self) -> &'static str {
        NAMES
            .iter()
            .find(|(_, kind)| *kind == self.0)
            .map_or("scalar", |(name, _)| name)
    }

    pub(crate) fn kind(self) -> Kind {
        self.0
    }

    fn named(name: &str) -> Result<Isa, Error> {
        match NAMES.iter().find(|(known, _)| *known == name) {
            None => Err(Error::UnknownIsa {
                name: name.to_owned(),
            }),
            Some((_, kind)) if detected(*kind) => Ok(Isa(*kind)),
            Some((known, _)) => Err(Error::AbsentIsa { name: known }),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn detected(kind: Kind) -> bool {
    match kind {
        Kind::Scalar => true,
        Kind::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"),
        Kind::AvxVnni => detected(Kind::Avx2) && is_x86_feature_detected!("avxvnni"),
        Kind::Avx512Vnni => {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vnni")
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detected(kind: Kind) -> bool {
    kind == Kind::Scalar
}

/// The instruction set in use: the one that `NEUROCONV_ISA` names, else the best this processor
/// has. Decided at the first call, when it must also pass a test against the scalar path.
///
/// The products fall back on [`Isa::SCALAR`] when this is an error, so whoever loads a model asks
/// first and reports it.
pub fn isa() -> Result<Isa, Error> {
    static CHOICE: OnceLock<Result<Isa, Error>> = OnceLock::new();
    CHOICE
        .get_or_init(|| {
            let isa = match std::env::var_os("NEUROCONV_ISA") {
                Some(name) => Isa::named(&name.to_string_lossy())?,
                None => Isa::available().last().copied().unwrap_or(Isa::SCALAR),
            };
            if passes_alone(isa) {
                Ok(isa)
            } else {
                Err(Error::FaultyIsa { name: isa.name() })
            }
        })
        .clone()
}

/// The self-test on a thread and a pool of its own. Workers of the caller's pool may be waiting for
/// this very choice, so the test must not wait for them, nor take up their work meanwhile.
fn passes_alone(isa: Isa) -> bool {
    let Ok(pool) = rayon::ThreadPoolBuilder::new().num_threads(1).build() else {
        return false;
    };
    let test = || pool.install(|| selftest::passes(isa));
    std::thread::scope(|scope| scope.spawn(test).join()).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_environment_forces_is_used() {
        let available = Isa::available();
        assert_eq!(available[0], Isa::SCALAR);
        let expected = match std::env::var("NEUROCONV_ISA") {
            Ok(name) => name,
            Err(_) => available[available.len() - 1].name().to_owned(),
        };
        assert_eq!(isa().unwrap().name(), expected);
    }

    #[test]
    fn names_round_trip_and_unknown_ones_are_refused() {
        for isa in Isa::available() {
            assert_eq!(Isa::named(isa.name()), Ok(isa));
        }
        for name in ["", "AVX2", "sse", "scalar "] {
            let error = Isa::named(name).unwrap_err();
            assert_eq!(
                error,
                Error::UnknownIsa {
                    name: name.to_owned()
                }
            );
            assert!(error.hint().unwrap().contains("scalar"));
        }
        for (name, kind) in NAMES {
            assert_eq!(Isa::named(name).is_ok(), detected(kind));
        }
    }
}
