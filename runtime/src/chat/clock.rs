//! The `strftime_now` function of templates: the date in UTC, in the codes that templates use.

use minijinja::{Error, ErrorKind};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// `format` with the codes `%Y %m %d %B %b %A %a %H %M %S %y %j %%` filled in for `now`, in
/// seconds since 1970 UTC. `%-d` and its like leave out the leading zero.
pub(super) fn strftime(format: &str, now: u64) -> Result<String, Error> {
    let (year, month, day) = civil(now / 86_400);
    let day_of_year = now / 86_400 - days_before(year) + 1;
    let (hour, minute, second) = (now / 3600 % 24, now / 60 % 60, now % 60);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[(now / 86_400 % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        let padded = code != Some('-');
        if !padded {
            code = chars.next();
        }
        let number = |n: u64, width: usize| {
            if padded {
                format!("{n:0width$}")
            } else {
                n.to_string()
            }
        };
        let text = match code {
            Some('Y') => year.to_string(),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month as u64, 2),
            Some('d') => number(day, 2),
            Some('j') => number(day_of_year, 3),
            Some('H') => number(hour, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('%') => "%".to_owned(),
            _ => {
                let detail = format!("strftime_now does not know a code in `{format}`");
                return Err(Error::new(ErrorKind::InvalidOperation, detail));
            }
        };
        out.push_str(&text);
    }
    Ok(out)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// Days from 1970 to the first of `year`.
fn days_before(year: u64) -> u64 {
    let leaps = |y: u64| y / 4 - y / 100 + y / 400;
    (year - 1970) * 365 + leaps(year - 1) - leaps(1969)
}

/// Year, month from 1 and day from 1 of a day counted from 1970.
fn civil(days: u64) -> (u64, usize, u64) {
    let mut year = 1970 + days / 366;
    while days >= days_before(year + 1) {
        year += 1;
    }
    let mut left = days - days_before(year);
    let february = if is_leap(year) { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_are_spelled_as_python_spells_them() {
        let cases = [
            (0, "%Y-%m-%d %H:%M:%S %A", "1970-01-01 00:00:00 Thursday"),
            (951_782_400, "%d %b %Y, %j", "29 Feb 2000, 060"),
            (
                1_735_689_599,
                "%A %-d %B %Y %j %H:%M:%S",
                "Tuesday 31 December 2024 366 23:59:59",
            ),
            (4_107_542_400, "%-m/%-d/%y %a 100%%", "3/1/00 Mon 100%"),
        ];
        for (now, format, expected) in cases {
            assert_eq!(strftime(format, now).unwrap(), expected);
        }
    }

    #[test]
    fn unknown_codes_are_errors() {
        assert!(strftime("%Q", 0).is_err());
        assert!(strftime("100%", 0).is_err());
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        let mut before = civil(0);
        for day in 1..146_097 {
            let now = civil(day);
            let next_day = now.0 == before.0 && now.1 == before.1 && now.2 == before.2 + 1;
            let next_month = now.2 == 1 && (now.1 == before.1 + 1 || (now.1, before.1) == (1, 12));
            assert!(next_day || next_month, "{before:?} then {now:?}");
            before = now;
        }
    }
}
