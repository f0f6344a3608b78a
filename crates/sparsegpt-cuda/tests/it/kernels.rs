//! What the launch code knows of the kernels, against their text.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use ptx_emulator::{Module, ScalarType};
use sparsegpt_cuda::{Parameter, kernels};

/// The parsed modules by name, with the text.
fn modules() -> BTreeMap<&'static str, (Module, &'static str)> {
    kernels()
        .map(|kernel| {
            let text = kernel.module.text;
            let parsed = Module::parse(text).unwrap();
            (kernel.module.name, (parsed, text))
        })
        .collect()
}

#[test]
fn tables_and_texts_say_the_same() {
    let modules = modules();
    assert!(!modules.is_empty());
    for kernel in kernels() {
        let (module, _) = &modules[kernel.module.name];
        let text = module.kernel(kernel.name).unwrap();
        let expected: Vec<(&str, ScalarType)> = kernel
            .parameters
            .iter()
            .map(|&(name, parameter)| {
                let ty = match parameter {
                    Parameter::Address => ScalarType::U64,
                    Parameter::U32 => ScalarType::U32,
                    Parameter::F32 => ScalarType::F32,
                    _ => unreachable!("a kind of parameter unknown here"),
                };
                (name, ty)
            })
            .collect();
        let found: Vec<(&str, ScalarType)> = text
            .parameters()
            .iter()
            .map(|parameter| (parameter.name.as_str(), parameter.ty))
            .collect();
        assert_eq!(found, expected, "{}", kernel.name);
        assert_eq!(
            text.required_threads(),
            Some([kernel.threads, 1, 1]),
            "{}",
            kernel.name
        );
    }
}

#[test]
fn every_entry_is_in_a_table() {
    let known: BTreeSet<(&str, &str)> = kernels()
        .map(|kernel| (kernel.module.name, kernel.name))
        .collect();
    assert_eq!(known.len(), kernels().count(), "a kernel is listed twice");
    for (name, (module, _)) in modules() {
        for entry in module.kernels() {
            assert!(
                known.contains(&(name, entry.name())),
                "{name}.ptx: {}",
                entry.name()
            );
        }
    }
}

#[test]
fn every_text_is_in_the_crate() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels");
    let files: BTreeSet<String> = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let is_text = path.extension().is_some_and(|extension| extension == "ptx");
            is_text.then(|| path.file_stem().unwrap().to_string_lossy().into_owned())
        })
        .collect();
    let known: BTreeSet<String> = modules().into_keys().map(str::to_owned).collect();
    assert_eq!(files, known);
}

#[test]
fn every_device_since_ampere_can_run_them() {
    for (name, (module, text)) in modules() {
        assert_eq!(module.version(), (7, 0), "{name}.ptx");
        assert_eq!(module.target(), "sm_80", "{name}.ptx");
        // The driver takes text that ends with a zero, and finds none before.
        assert!(!text.contains('\0') && text.is_ascii(), "{name}.ptx");
        for kernel in module.kernels() {
            // What a kernel may declare.
            let most = 48 << 10;
            assert!(kernel.shared_bytes() <= most, "{}", kernel.name());
        }
    }
}

#[test]
fn an_assembler_has_no_choice_of_rounding() {
    for (name, (module, _)) in modules() {
        for kernel in module.kernels() {
            let lines = kernel.contractible_lines();
            assert!(
                lines.is_empty(),
                "{name}.ptx, {}: sums and products without .rn, which an assembler may make one fma of, in lines {lines:?}",
                kernel.name()
            );
        }
    }
}
