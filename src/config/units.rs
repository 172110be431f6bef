//! Values with a unit, such as "32 MiB" and "30s".

use super::values::InvalidValue;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// A number of bytes, written as "32 MiB" or as a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteCount(pub u64);

/// A length of time, written as "30s" or "1m 30s".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seconds(pub Duration);

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ByteSize(self.0).fmt(f)
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl FromStr for ByteCount {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, InvalidValue> {
        s.parse::<ByteSize>()
            .map(|size| Self(size.0))
            .map_err(|_| InvalidValue(format!("{s:?} is not a size: write one such as \"32 MiB\"")))
    }
}

impl FromStr for Seconds {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, InvalidValue> {
        humantime::parse_duration(s)
            .map(Self)
            .map_err(|_| InvalidValue(format!("{s:?} is not a length of time: write one such as \"30s\"")))
    }
}

impl ByteCount {
    /// Returns the value as it is displayed, if that parses back to the same number, and otherwise as the number of
    /// bytes.
    pub fn exact(self) -> String {
        let printed = self.to_string();
        if printed.parse() == Ok(self) { printed } else { self.0.to_string() }
    }
}

impl Serialize for ByteCount {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.exact())
    }
}

impl Serialize for Seconds {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteCount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a size: \"32 MiB\", or a number of bytes")]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(Self(bytes)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displayed_values_parse_back() {
        for bytes in [1, 1000, 32 << 20, 5 << 30] {
            let size = ByteCount(bytes);
            assert_eq!(size.to_string().parse(), Ok(size), "{size}");
        }
        let time = Seconds(Duration::from_millis(90_500));
        assert_eq!(time.to_string().parse(), Ok(time));
        assert_eq!("1m 30s".parse(), Ok(Seconds(Duration::from_secs(90))));
    }

    #[test]
    fn a_missing_unit_is_an_error_with_an_example() {
        assert!("fast".parse::<Seconds>().unwrap_err().to_string().contains("30s"));
        assert!("big".parse::<ByteCount>().unwrap_err().to_string().contains("32 MiB"));
    }
}
