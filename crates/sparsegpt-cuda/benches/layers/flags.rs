//! The command line.

use std::collections::HashMap;

/// What multiplies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Products {
    Device,
    Ordinary,
    Tensor,
    Libraries,
}

impl Products {
    const ALL: [Self; 4] = [Self::Device, Self::Ordinary, Self::Tensor, Self::Libraries];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Ordinary => "ordinary",
            Self::Tensor => "tensor",
            Self::Libraries => "libraries",
        }
    }
}

pub(crate) struct Flags {
    pub(crate) shapes: Vec<(usize, usize)>,
    pub(crate) patterns: Vec<String>,
    pub(crate) products: Products,
    pub(crate) runs: usize,
    pub(crate) seconds: f64,
    pub(crate) tokens: usize,
    pub(crate) sizes: Vec<usize>,
    pub(crate) rates: bool,
    pub(crate) emulator: bool,
}

/// Flags without a value; `--device` asks for nothing more than the line that every run begins with.
const SWITCHES: [&str; 3] = ["--rates", "--emulator", "--device"];

impl Flags {
    pub(crate) fn parse() -> Self {
        let mut given = HashMap::new();
        // `cargo bench` adds a flag of its own.
        let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
        while let Some(flag) = args.next() {
            let value = if SWITCHES.contains(&&*flag) {
                String::new()
            } else {
                args.next()
                    .unwrap_or_else(|| panic!("{flag} needs a value"))
            };
            given.insert(flag, value);
        }
        let [rates, emulator, _] = SWITCHES.map(|switch| given.remove(switch).is_some());
        let mut value =
            |flag: &str, default: &str| given.remove(flag).unwrap_or_else(|| default.to_owned());
        let list = |value: String| -> Vec<String> {
            let parts = value.split(',').filter(|part| !part.is_empty());
            parts.map(str::to_owned).collect()
        };
        let products = value("--products", "device");
        let flags = Self {
            shapes: list(value("--shapes", ""))
                .iter()
                .map(|shape| {
                    let (rows, cols) = shape.split_once('x').unwrap();
                    (rows.parse().unwrap(), cols.parse().unwrap())
                })
                .collect(),
            patterns: list(value("--patterns", "50%,2:4,50%+4bit")),
            products: Products::ALL
                .into_iter()
                .find(|it| it.name() == products)
                .unwrap_or_else(|| {
                    panic!("--products {products}: device, ordinary, tensor or libraries")
                }),
            runs: value("--runs", "3").parse().unwrap(),
            seconds: value("--seconds", "20").parse().unwrap(),
            tokens: value("--tokens", "8192").parse().unwrap(),
            sizes: list(value("--sizes", "4096,8192"))
                .iter()
                .map(|size| size.parse().unwrap())
                .collect(),
            rates,
            emulator,
        };
        assert!(given.is_empty(), "unknown flags: {:?}", given.keys());
        flags
    }
}
