//! Chooses the device that computes the means of a table.

#[cfg(feature = "candle")]
mod devices;

use serde::{Deserialize, Serialize};

use super::{CpuPooling, Pooling};

/// The device on which the table is stored and the means are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first device that this build supports and that accepts the table; otherwise the CPU.
    Auto,
    #[default]
    Cpu,
    /// The CUDA device with the driver's number.
    Cuda(usize),
    Metal(usize),
    /// candle's operations on the CPU: the code that devices run, for tests on machines without a device. It is slower than
    /// [`DeviceChoice::Cpu`].
    CandleCpu,
}

/// The error for a text that names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidDevice(String);

impl TryFrom<String> for DeviceChoice {
    type Error = InvalidDevice;

    fn try_from(s: String) -> Result<Self, InvalidDevice> {
        let (kind, number) = s.split_once(':').map_or((s.as_str(), None), |(kind, number)| (kind, Some(number)));
        let digits = number.unwrap_or("0");
        let parsed = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
        match (kind, number, parsed) {
            ("auto", None, _) => Ok(Self::Auto),
            ("cpu", None, _) => Ok(Self::Cpu),
            ("candle-cpu", None, _) => Ok(Self::CandleCpu),
            ("cuda", _, Some(n)) => Ok(Self::Cuda(n)),
            ("metal", _, Some(n)) => Ok(Self::Metal(n)),
            ("cuda" | "metal", _, None) => Err(InvalidDevice(format!("{s:?} has no device number after \"{kind}:\""))),
            _ => {
                let known = "\"auto\", \"cpu\", \"cuda\", \"cuda:N\", \"metal\" or \"metal:N\"";
                Err(InvalidDevice(format!("{s:?} is not a device: {known}")))
            }
        }
    }
}

impl From<DeviceChoice> for String {
    fn from(device: DeviceChoice) -> Self {
        match device {
            DeviceChoice::Auto => "auto".to_owned(),
            DeviceChoice::Cpu => "cpu".to_owned(),
            DeviceChoice::Cuda(n) => format!("cuda:{n}"),
            DeviceChoice::Metal(n) => format!("metal:{n}"),
            DeviceChoice::CandleCpu => "candle-cpu".to_owned(),
        }
    }
}

/// The reason why a device does not accept a table. The text continues a sentence that begins with the checkpoint's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    pub problem: String,
    /// The remedy: a sentence without its period.
    pub remedy: String,
}

/// Places the pooling of `cpu` on the device that `choice` names. For [`DeviceChoice::Auto`], also returns why the CPU was
/// chosen, if it was.
///
/// Batches of fewer than `min_tokens` tokens stay on the CPU, which then continues to read the table. With `None`, both are
/// measured, which takes a fraction of a second.
///
/// # Errors
/// When the device does not exist, or does not accept the table, or does not support a setting of `cpu`.
pub fn place(
    choice: DeviceChoice,
    min_tokens: Option<usize>,
    cpu: CpuPooling,
) -> Result<(Box<dyn Pooling>, Option<String>), Unavailable> {
    check_built(choice)?;
    if let Some(setting) = cpu.only_on_the_cpu().filter(|_| choice != DeviceChoice::Cpu) {
        let problem = format!("cannot use device = \"{}\": devices do not support {setting}", String::from(choice));
        return match choice {
            DeviceChoice::Auto => Ok((Box::new(cpu), Some(format!("devices do not support {setting}")))),
            _ => Err(Unavailable { problem, remedy: "set device = \"cpu\" or \"auto\"".to_owned() }),
        };
    }
    #[cfg(feature = "candle")]
    return devices::place(choice, min_tokens, cpu);
    #[cfg(not(feature = "candle"))]
    {
        let _ = min_tokens;
        Ok((Box::new(cpu), (choice == DeviceChoice::Auto).then(|| NO_DEVICES.to_owned())))
    }
}

const NO_DEVICES: &str = "this build has neither the feature cuda nor metal";

/// Checks that this build supports the device.
///
/// # Errors
/// When the build lacks the feature.
pub fn check_built(choice: DeviceChoice) -> Result<(), Unavailable> {
    let (feature, built) = match choice {
        DeviceChoice::Auto | DeviceChoice::Cpu => return Ok(()),
        DeviceChoice::Cuda(_) => ("cuda", cfg!(feature = "cuda")),
        DeviceChoice::Metal(_) => ("metal", cfg!(feature = "metal")),
        DeviceChoice::CandleCpu => ("candle", cfg!(feature = "candle")),
    };
    if built {
        return Ok(());
    }
    Err(Unavailable {
        problem: format!("cannot use device = \"{}\": this build lacks it", String::from(choice)),
        remedy: format!("build with `cargo build --release --features {feature}`, or set device = \"cpu\""),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_written_as_they_are_read_and_anything_else_is_an_error() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda:0", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
            ("metal:1", DeviceChoice::Metal(1)),
            ("candle-cpu", DeviceChoice::CandleCpu),
        ] {
            assert_eq!(DeviceChoice::try_from(text.to_owned()), Ok(choice));
            assert_eq!(String::from(choice), text);
        }
        assert_eq!(DeviceChoice::try_from("cuda".to_owned()), Ok(DeviceChoice::Cuda(0)));
        assert_eq!(DeviceChoice::try_from("metal".to_owned()), Ok(DeviceChoice::Metal(0)));
        for text in ["", "gpu", "CUDA", "cpu:0", "auto:0", ":0", "cuda0"] {
            let error = DeviceChoice::try_from(text.to_owned()).unwrap_err().to_string();
            assert!(error.contains("is not a device") && error.contains("\"cuda:N\""), "{error}");
        }
        for text in ["cuda:", "cuda:x", "cuda:-1", "cuda:+1", "metal: 0", "cuda:99999999999999999999"] {
            let error = DeviceChoice::try_from(text.to_owned()).unwrap_err().to_string();
            assert!(error.contains("no device number"), "{error}");
        }
    }
}
