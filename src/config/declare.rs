//! The macro that declares the settings of a section: one declaration for each setting, from which all else follows.
//!
//! ```text
//! declare_settings! {
//!     /// Everything about lamps.
//!     pub struct LampConfig in "lamp", "[lamp]" {
//!         /// The brightness, in percent. Lamps in other rooms are not affected.
//!         brightness: u8 {
//!             default: 80,
//!             check: Whole { least: 1, most: 100 },
//!             variable: "EMBEDDING_SERVER_BRIGHTNESS",
//!             flag: Flag::new("--brightness", "PERCENT").short('b'),
//!         }
//!         /// The color.
//!         color: Option<String> {
//!             check: Name,
//!             unset: "as the lamp was built",
//!             example: "warm white",
//!             restart: true,
//!         }
//!     }
//! }
//! ```
//!
//! This declares the struct `LampConfig` with the fields `brightness` and `color`, its `Default`, its serialization,
//! and `LampConfig::SECTION`, a [`Section`](super::settings::Section) that holds all of the above as data. The
//! following code reads that data and knows no setting by name:
//!
//! - `file`, `variables` and `layers` read, check and merge the values of the file, the environment and the flags;
//! - `check` prints each value with its origin;
//! - `cli/setting_flags.rs` defines the flags;
//! - `server/reload.rs` warns of changes that need a restart;
//! - `tests/it/config_reference.rs` compares `config/embedding-server.toml` and the table in `docs/operations.md` with
//!   the declarations, and rewrites both if `UPDATE_GENERATED=1` is set.
//!
//! A new setting is therefore one declaration here, and the code that uses the field. All properties stand in the order
//! above. Only `check` is required:
//!
//! - the doc comment becomes the comment in the configuration file. Its first sentence is the help of the flag and the
//!   row in the table;
//! - `default` is the value that applies if the setting is not given. Without it, the default is that of the type;
//! - `check` is the [`ValueKind`](super::values::ValueKind): how the value is written, and its range;
//! - `variable` and `flag` are the environment variable and the flag that set the value;
//! - `unset` says what applies to a setting that has no default value;
//! - `example` is the value that the configuration file shows, behind a comment sign, for a setting without a default;
//! - `restart` says that the server must be restarted for a change to take effect.

/// Declares the settings of one section. The documentation of this module has an example.
macro_rules! declare_settings {
    (
        $(#[doc = $about:literal])+
        pub struct $Type:ident in $section:literal, $header:literal {
            $(
                $(#[doc = $line:literal])+
                $key:ident: $value:ty {
                    $(default: $default:expr,)?
                    check: $check:expr,
                    $(variable: $variable:literal,)?
                    $(flag: $flag:expr,)?
                    $(unset: $unset:literal,)?
                    $(example: $example:literal,)?
                    $(restart: $restart:literal,)?
                }
            )*
        }
        $(
            // Fields that are sections of their own.
            sections {
                $( $nested:ident: $nested_type:ty { default: $nested_default:expr, } )*
            }
        )?
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $Type {
            $(
                $(#[doc = $line])+
                pub $key: $value,
            )*
            $($(
                pub $nested: $nested_type,
            )*)?
        }

        impl Default for $Type {
            fn default() -> Self {
                Self {
                    $( $key: declare_settings!(@default $($default)?), )*
                    $($( $nested: $nested_default, )*)?
                }
            }
        }

        impl $Type {
            /// The declarations of these settings.
            pub const SECTION: $crate::config::settings::Section = $crate::config::settings::Section {
                name: $section,
                header: $header,
                documentation: &[$($about),+],
                settings: &[$(
                    $crate::config::settings::Setting {
                        section: $section,
                        key: stringify!($key),
                        documentation: &[$($line),+],
                        check: $check,
                        variable: declare_settings!(@optional $($variable)?),
                        flag: declare_settings!(@optional $($flag)?),
                        unset: declare_settings!(@optional $($unset)?),
                        example: declare_settings!(@optional $($example)?),
                        restart: matches!(declare_settings!(@optional $($restart)?), Some(true)),
                    }
                ),*],
                defaults: || toml::Table::try_from(Self::default()).unwrap_or_default(),
            };
        }
    };
    (@default) => { Default::default() };
    (@default $default:expr) => { $default };
    (@optional) => { None };
    (@optional $value:expr) => { Some($value) };
}

pub(super) use declare_settings;
