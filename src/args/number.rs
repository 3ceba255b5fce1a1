//! Numbers as they are typed, and their ranges.

/// Numbers of threads, at least one number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ThreadCounts(pub(crate) Vec<u16>);

pub(super) fn thread_counts(text: &str) -> Result<ThreadCounts, String> {
    let count = |word: &str| match word.parse() {
        Ok(count @ 1..=1024) => Ok(count),
        _ => Err(format!("`{word}` is no number from 1 to 1024")),
    };
    text.split(',')
        .map(count)
        .collect::<Result<_, _>>()
        .map(ThreadCounts)
}

fn finite(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if value.is_finite() {
        Ok(value)
    } else {
        Err("must be finite".to_owned())
    }
}

pub(super) fn positive(text: &str) -> Result<f64, String> {
    finite(text).and_then(|v| {
        if v > 0.0 {
            Ok(v)
        } else {
            Err("must be above 0".to_owned())
        }
    })
}

pub(super) fn non_negative(text: &str) -> Result<f64, String> {
    finite(text).and_then(|v| {
        if v >= 0.0 {
            Ok(v)
        } else {
            Err("must be 0 or more".to_owned())
        }
    })
}

/// A magnitude, `inf` included.
pub(super) fn magnitude(text: &str) -> Result<f64, String> {
    match text {
        "inf" => Ok(f64::INFINITY),
        _ => non_negative(text),
    }
}

/// A share, in percent where the sign says so.
pub(super) fn percent(text: &str) -> Result<f64, String> {
    match text.strip_suffix('%') {
        Some(number) => Ok(non_negative(number.trim_end())? / 100.0),
        None => non_negative(text),
    }
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    finite(text).and_then(|v| {
        if (0.0..=1.0).contains(&v) {
            Ok(v)
        } else {
            Err("must lie between 0 and 1".to_owned())
        }
    })
}

pub(super) fn group_size(text: &str) -> Result<usize, String> {
    let value: usize = text.parse().map_err(|_| "not a whole number".to_owned())?;
    if neuroconv_format::codec::GROUP_SIZES.contains(&value) {
        Ok(value)
    } else {
        Err("must be 32, 64, 128 or 256".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_are_no_numbers_are_refused() {
        for bad in ["nan", "inf", "-1", "0", "x"] {
            assert!(positive(bad).is_err(), "{bad}");
        }
        assert!(percent("2%") == Ok(0.02) && percent("0.5") == Ok(0.5) && percent("-1%").is_err());
        assert!(share("1.01").is_err() && share("NaN").is_err() && share("1") == Ok(1.0));
        assert_eq!(thread_counts("1,16"), Ok(ThreadCounts(vec![1, 16])));
        assert!(
            ["", "0", "1,", "1025", "-1"]
                .iter()
                .all(|t| thread_counts(t).is_err())
        );
        assert!(magnitude("inf") == Ok(f64::INFINITY) && magnitude("-1").is_err());
        assert!(group_size("48").is_err() && group_size("64") == Ok(64));
    }
}
