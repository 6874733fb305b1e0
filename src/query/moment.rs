//! Dates and times as people and our own rows write them: ISO 8601, with a `T` or a blank.
//!
//! The calendar is the proleptic Gregorian one. chrono ends at the year 262,143 and has no zero dates; databases go further and have them.

/// A date, with or without a time of day, with or without an offset from UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The astronomical year: 0 is 1 BC.
    pub year: i64,
    /// From 1; 0 in a date of MySQL's that has no month.
    pub month: u32,
    /// From 1; 0 in a date of MySQL's that has no day.
    pub day: u32,
    /// The time of day, if it was given.
    pub time: Option<Time>,
    /// Seconds east of UTC, if an offset was given.
    pub offset_seconds: Option<i32>,
}

/// A time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    /// 0 to 23.
    pub hour: u32,
    /// 0 to 59.
    pub minute: u32,
    /// 0 to 59.
    pub second: u32,
    /// The fraction of a second, in billionths.
    pub nanos: u32,
}

/// What a column of times holds: a time of day, or with MySQL a span of up to 838 hours in either direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockTime {
    /// Whether it is a span backwards.
    pub negative: bool,
    /// The hours.
    pub hours: u32,
    /// Seconds east of UTC, if an offset was given.
    pub offset_seconds: Option<i32>,
}

const DAY_SECONDS: i64 = 86_400;

impl Moment {
    /// Reads a date or a date with a time.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, unsigned) = signed(text);
        let (year, rest) = digits(unsigned, 4..=7)?;
        let (month, rest) = digits(rest.strip_prefix('-')?, 2..=2)?;
        let (day, rest) = digits(rest.strip_prefix('-')?, 2..=2)?;
        let year = i64::from(year) * if negative { -1 } else { 1 };
        let moment = Self {
            year,
            month,
            day,
            time: None,
            offset_seconds: None,
        };
        if month > 12 || day > days_in(year, month.max(1)).max(if month == 0 { 31 } else { 0 }) {
            return None;
        }
        let Some(rest) = rest.strip_prefix(['T', 't', ' ']) else {
            return rest.is_empty().then_some(moment);
        };
        let (time, rest) = Time::parse(rest)?;
        let moment = Self {
            time: Some(time),
            offset_seconds: offset(rest)?,
            ..moment
        };
        // What has no day cannot be moved by hours.
        match moment.is_real() {
            true => Some(moment.at_midnight_of_the_next_day()),
            false => (moment.offset_seconds.unwrap_or(0) == 0 && time.hour < 24).then_some(moment),
        }
    }

    /// 24:00:00 as what it is: the beginning of the next day.
    fn at_midnight_of_the_next_day(self) -> Self {
        if self.time.is_none_or(|time| time.hour < 24) {
            return self;
        }
        let next = days_from_civil(self.year, self.month, self.day) + 1;
        let (year, month, day) = civil_from_days(next);
        Self {
            year,
            month,
            day,
            time: Some(Time::default()),
            ..self
        }
    }

    /// The same instant at UTC, without an offset; one without an offset stays as it is.
    #[must_use]
    pub fn to_utc(self) -> Self {
        let Some(offset) = self.offset_seconds else {
            return self;
        };
        let time = self.time.unwrap_or_default();
        if !self.is_real() {
            return Self {
                offset_seconds: None,
                ..self
            };
        }
        let seconds = i64::from(time.hour * 3600 + time.minute * 60 + time.second);
        let at = days_from_civil(self.year, self.month, self.day) * DAY_SECONDS + seconds
            - i64::from(offset);
        let (year, month, day) = civil_from_days(at.div_euclid(DAY_SECONDS));
        let second = u32::try_from(at.rem_euclid(DAY_SECONDS)).unwrap_or(0);
        Self {
            year,
            month,
            day,
            time: Some(Time {
                hour: second / 3600,
                minute: second / 60 % 60,
                second: second % 60,
                nanos: time.nanos,
            }),
            offset_seconds: None,
        }
    }

    /// Whether no time of day was given.
    pub fn is_date_only(&self) -> bool {
        self.time.is_none()
    }

    /// Whether it has digits after the microseconds.
    pub fn is_finer_than_micros(&self) -> bool {
        self.time.is_some_and(|time| time.nanos % 1000 != 0)
    }

    /// Whether it is a day that there is; MySQL has others.
    pub fn is_real(&self) -> bool {
        self.month > 0 && self.day > 0
    }

    /// As PostgreSQL reads it, whatever its settings.
    pub fn postgres(&self) -> String {
        let (year, era) = match self.year > 0 {
            true => (self.year, ""),
            false => (1 - self.year, " BC"),
        };
        let time = self
            .time
            .map_or_else(String::new, |time| format!(" {time}"));
        format!("{year:04}-{:02}-{:02}{time}{era}", self.month, self.day)
    }

    /// As MySQL reads it; `None` for a year that it does not have.
    pub fn mysql(&self) -> Option<String> {
        let time = self
            .time
            .map_or_else(String::new, |time| format!(" {time}"));
        (0..=9999)
            .contains(&self.year)
            .then(|| format!("{:04}-{:02}-{:02}{time}", self.year, self.month, self.day))
    }

    /// The instant as a text of fixed form, whose order is that of time; a date is its midnight.
    pub fn sortable(&self) -> String {
        let utc = self.to_utc();
        // Years from a number that none is below, so that all have the same sign and width.
        let year = utc.year + 10_000_000;
        let time = utc.time.unwrap_or_default();
        format!(
            "{year:08}-{:02}-{:02} {:02}:{:02}:{:02}.{:09}",
            utc.month, utc.day, time.hour, time.minute, time.second, time.nanos
        )
    }
}

/// `HH:MM:SS` and six digits.
impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = self.nanos / 1000;
        write!(
            f,
            "{:02}:{:02}:{:02}.{micros:06}",
            self.hour, self.minute, self.second
        )
    }
}

impl Time {
    /// Reads `HH:MM[:SS[.fraction]]` and what follows it.
    fn parse(text: &str) -> Option<(Self, &str)> {
        let (hour, rest) = digits(text, 2..=2)?;
        let (time, rest) = Self::after_hour(hour, rest)?;
        let midnight = time.minute == 0 && time.second == 0 && time.nanos == 0;
        (hour < 24 || (hour == 24 && midnight)).then_some((time, rest))
    }

    fn after_hour(hour: u32, rest: &str) -> Option<(Self, &str)> {
        let (minute, rest) = digits(rest.strip_prefix(':')?, 2..=2)?;
        let (second, rest) = match rest.strip_prefix(':') {
            Some(rest) => digits(rest, 2..=2)?,
            None => (0, rest),
        };
        let (nanos, rest) = match rest.strip_prefix(['.', ',']) {
            Some(rest) => {
                let (fraction, after) = digits(rest, 1..=9)?;
                let length = u32::try_from(rest.len() - after.len()).unwrap_or(9);
                (fraction * 10_u32.pow(9 - length), after)
            }
            None => (0, rest),
        };
        let time = Self {
            hour,
            minute,
            second,
            nanos,
        };
        (minute < 60 && second < 60).then_some((time, rest))
    }
}

impl ClockTime {
    /// Reads `[-]HH:MM[:SS[.ffffff]]`, with up to three digits of hours, and an offset.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(unsigned) => (true, unsigned),
            None => (false, text),
        };
        let (hours, rest) = digits(unsigned, 1..=3)?;
        let (time, rest) = Time::after_hour(hours, rest)?;
        (time.nanos.is_multiple_of(1000)).then_some(Self {
            negative,
            hours,
            offset_seconds: offset(rest)?,
        })
    }
}

fn signed(text: &str) -> (bool, &str) {
    match text.strip_prefix('-') {
        Some(unsigned) => (true, unsigned),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    }
}

/// A run of digits of an allowed length, and what follows it.
fn digits(text: &str, length: std::ops::RangeInclusive<usize>) -> Option<(u32, &str)> {
    let end = text.bytes().take_while(u8::is_ascii_digit).count();
    length
        .contains(&end)
        .then(|| Some((text[..end].parse().ok()?, &text[end..])))?
}

/// The offset that a text is: none, `Z`, or `±HH[[:]MM[:SS]]`, behind a blank or not. The outer `None`: it is none.
#[expect(clippy::option_option, reason = "no offset is one of the answers")]
fn offset(text: &str) -> Option<Option<i32>> {
    let text = text.strip_prefix(' ').unwrap_or(text);
    if text.is_empty() {
        return Some(None);
    }
    if text.eq_ignore_ascii_case("z") {
        return Some(Some(0));
    }
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let (hours, rest) = match digits(rest, 4..=4) {
        Some((both, "")) => return within_day(sign, both / 100, both % 100, 0),
        _ => digits(rest, 2..=2)?,
    };
    let part = |rest: &'_ str| match rest.strip_prefix(':') {
        Some(rest) => digits(rest, 2..=2).map(|(part, rest)| (part, rest.len())),
        None => Some((0, rest.len())),
    };
    let (minutes, left) = part(rest)?;
    let (seconds, left) = part(&rest[rest.len() - left..])?;
    if left > 0 {
        return None;
    }
    within_day(sign, hours, minutes, seconds)
}

#[expect(clippy::option_option, reason = "as `offset`, which it is the end of")]
fn within_day(sign: i32, hours: u32, minutes: u32, seconds: u32) -> Option<Option<i32>> {
    let total = i32::try_from(hours * 3600 + minutes * 60 + seconds).ok()?;
    (hours < 24 && minutes < 60 && seconds < 60).then_some(Some(sign * total))
}

fn days_in(year: i64, month: u32) -> u32 {
    let leap = year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 0000-03-01. Years that begin in March end with the leap day.
fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let shifted = (i64::from(month) + 9) % 12;
    let day_of_year = (153 * shifted + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year
}

/// Year, month and day of a number of days since 0000-03-01, in the proleptic Gregorian calendar.
pub fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let small = |number: i64| u32::try_from(number).unwrap_or(0);
    (year, small(month), small(day))
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Datelike as _, FixedOffset, NaiveDate, TimeZone as _, Timelike as _};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_people_and_databases_write_is_read() {
        for (text, postgres) in [
            ("2024-05-01", "2024-05-01"),
            ("2024-05-01T12:30", "2024-05-01 12:30:00.000000"),
            ("2024-05-01 12:30:15.25Z", "2024-05-01 12:30:15.250000"),
            ("2024-05-01T00:30:00+02:00", "2024-04-30 22:30:00.000000"),
            ("2024-05-01 00:30:00 +0200", "2024-04-30 22:30:00.000000"),
            ("2024-02-28T23:30:00-01", "2024-02-29 00:30:00.000000"),
            ("2024-12-31T24:00:00Z", "2025-01-01 00:00:00.000000"),
            ("2024-02-28 24:00", "2024-02-29 00:00:00.000000"),
            ("2024-12-31T24:00:00+02:00", "2024-12-31 22:00:00.000000"),
            ("-0043-03-15", "0044-03-15 BC"),
            ("0000-02-29", "0001-02-29 BC"),
            ("+12024-01-01", "12024-01-01"),
            ("5874897-12-31", "5874897-12-31"),
        ] {
            assert_eq!(
                Moment::parse(text).unwrap().to_utc().postgres(),
                postgres,
                "{text}"
            );
        }
        for text in [
            "",
            "yesterday",
            "24-05-01",
            "2024-5-1",
            "2024-13-01",
            "2023-02-29",
            "2024-05-32",
            "2024-05-01T",
            "2024-05-01T25:00",
            "2024-05-01T24:00:01",
            "2024-05-01T12:60",
            "2024-05-01T12:30:00+25:00",
            "2024-05-01T12:30:00+02:00x",
            "2024-05-01+02:00",
            "2024-05-01T12:30:00.1234567890",
            "2024-05-01T12",
            "0000-00-00T00:00:00+02:00",
        ] {
            assert_eq!(Moment::parse(text), None, "{text}");
        }
    }

    #[test]
    fn zero_dates_are_read_and_are_no_days() {
        for text in [
            "0000-00-00",
            "2024-00-00",
            "2024-01-00",
            "0000-00-00 00:00:00",
        ] {
            let moment = Moment::parse(text).unwrap();
            assert!(!moment.is_real(), "{text}");
            assert!(moment.mysql().unwrap().starts_with(&text[..10]), "{text}");
        }
        assert_eq!(Moment::parse("10000-01-01").unwrap().mysql(), None);
    }

    #[test]
    fn times_of_a_clock_are_read_with_their_reach() {
        assert_eq!(ClockTime::parse("10:30").unwrap().offset_seconds, None);
        assert_eq!(
            ClockTime::parse("10:30:00+02").unwrap().offset_seconds,
            Some(7200)
        );
        assert!(ClockTime::parse("-838:59:59").unwrap().negative);
        for text in [
            "",
            "10",
            "10:60",
            "10:30:00.1234567",
            "10:30 x",
            "2024-01-01",
        ] {
            assert_eq!(ClockTime::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn offsets_are_applied_as_chrono_does(
            seconds in -60_000_000_000_i64..200_000_000_000, micros in 0_u32..1_000_000, offset in -86_000..86_000_i32,
        ) {
            let zone = FixedOffset::east_opt(offset / 60 * 60).unwrap();
            let local: DateTime<FixedOffset> = zone.timestamp_opt(seconds, micros * 1000).unwrap();
            prop_assume!((0..=9999).contains(&local.year()));
            let utc = local.naive_utc();
            let moment = Moment::parse(&local.to_rfc3339()).unwrap().to_utc();
            let time = moment.time.unwrap();
            prop_assert_eq!((moment.year, moment.month, moment.day), (i64::from(utc.year()), utc.month(), utc.day()));
            prop_assert_eq!((time.hour, time.minute, time.second, time.nanos), (utc.hour(), utc.minute(), utc.second(), utc.nanosecond()));
        }

        #[test]
        fn sortable_texts_have_the_order_of_time(a in -2_000_000_i32..2_000_000, b in -2_000_000_i32..2_000_000) {
            let day = |n: i32| NaiveDate::from_num_days_from_ce_opt(n).unwrap();
            let text = |date: NaiveDate| match date.year() {
                year if year < 0 => format!("-{:04}-{:02}-{:02}", -year, date.month(), date.day()),
                year => format!("{year:04}-{:02}-{:02}", date.month(), date.day()),
            };
            let sortable = |n: i32| Moment::parse(&text(day(n))).unwrap().sortable();
            prop_assert_eq!(sortable(a).cmp(&sortable(b)), a.cmp(&b));
        }

        #[test]
        fn days_and_dates_are_inverse(days in -4_000_000_000_i64..4_000_000_000) {
            let (year, month, day) = civil_from_days(days);
            prop_assert_eq!(days_from_civil(year, month, day), days);
        }
    }
}
