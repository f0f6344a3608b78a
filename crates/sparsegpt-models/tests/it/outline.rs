//! What `config.json` alone tells, against the tensors of checkpoints and the public sizes of large models. The golden files
//! are not part of the repository; without them only the bundled model is compared, and the test says so.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use sparsegpt::ModelAdapter;
use sparsegpt_models::TensorSource;
use sparsegpt_models::checkpoint::{Checkpoint, Overlay};
use sparsegpt_models::decoder::{Outline, OutlinedLayer, TransformerAdapter};

/// Endings of tensors that a checkpoint may hold beyond what its model reads: buffers of old ones, a tied head, parts of
/// pre-training.
const UNREAD: [&str; 12] = [
    "lm_head.weight",
    "lm_head.bias",
    ".inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".position_ids",
    "pooler.dense.weight",
    "pooler.dense.bias",
    "embed_tokens.weight",
    "cls.predictions.decoder.weight",
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn checkpoints() -> Vec<PathBuf> {
    let mut folders = vec![repository().join("crates/sparsegpt-cli/assets/jargon")];
    let shared = std::env::var_os("SPARSEGPT_SHARED")
        .map_or_else(|| repository().join("../shared"), PathBuf::from);
    match fs::read_dir(shared.join("golden/families")) {
        Ok(entries) => folders.extend(entries.map(|entry| entry.unwrap().path())),
        Err(_) => eprintln!("skipped: no golden families (set SPARSEGPT_SHARED)"),
    }
    folders
}

#[test]
fn an_outline_has_the_tensors_and_layers_of_the_checkpoint() {
    for folder in checkpoints() {
        let name = folder.display();
        let real = Checkpoint::open(&folder).unwrap();
        let outlined = Checkpoint::outline(&folder).unwrap();
        assert!(outlined.is_outline() && !real.is_outline());
        let (found, expected) = (outlined.tensors(), real.tensors());
        for tensor in found.names() {
            let shape = found.info(&tensor).unwrap().shape;
            let real = expected.info(&tensor);
            let real = real.unwrap_or_else(|| panic!("{name}: no {tensor} in the checkpoint"));
            assert_eq!(shape, real.shape, "{name}: {tensor}");
        }
        for tensor in expected.names() {
            let read = found.info(&tensor).is_some();
            let known = UNREAD.iter().any(|ending| tensor.ends_with(ending));
            assert!(read || known, "{name}: {tensor} is not in the outline");
        }

        let outline = Outline::new(real.config()).unwrap();
        let layers = outline.layers();
        let mut sink = Overlay::new(real.tensors());
        let adapter = TransformerAdapter::new(real.config(), real.tensors(), &mut sink).unwrap();
        let of_adapter = (0..adapter.blocks()).flat_map(|block| {
            let layers = adapter.layers(block).unwrap();
            layers.into_iter().map(move |layer| (block, layer))
        });
        let mut count = 0;
        for ((block, layer), outlined) in of_adapter.zip(&layers) {
            assert_eq!(
                (&layer.name, block, layer.rows, layer.cols, layer.input),
                (
                    &outlined.name,
                    outlined.block,
                    outlined.rows,
                    outlined.cols,
                    outlined.input
                ),
                "{name}"
            );
            assert_eq!(
                outlined.expert.is_some(),
                adapter.may_starve(block, layer.input)
            );
            let info = found.info(&format!("{}.weight", layer.name)).unwrap();
            let elements: usize = info.shape.iter().product();
            assert_eq!(
                outlined.bytes,
                (elements * info.dtype.bitsize() / 8) as u64,
                "{name}: {}",
                layer.name
            );
            count += 1;
        }
        assert!(count > 0 && count == layers.len(), "{name}");
    }
}

#[test]
fn nothing_is_read_or_copied_from_an_outline() {
    let folder = tempfile::tempdir().unwrap();
    let bundled = repository().join("crates/sparsegpt-cli/assets/jargon/config.json");
    fs::copy(bundled, folder.path().join("config.json")).unwrap();
    assert!(Checkpoint::open(folder.path()).is_err());
    for path in [
        folder.path().to_path_buf(),
        folder.path().join("config.json"),
    ] {
        let outlined = Checkpoint::open_or_outline(&path).unwrap();
        assert!(outlined.is_outline());
        let tensors = outlined.tensors();
        let name = "model.norm.weight";
        assert!(tensors.info(name).is_some());
        let error = tensors.read_f32(name).unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains("no weights"),
            "{error}"
        );
    }
}

fn scaling(file: &str) -> Outline {
    let path = repository().join("docs/scaling").join(file);
    let config = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    Outline::new(&config).unwrap()
}

fn weights(outline: &Outline) -> usize {
    let names = outline.names().into_iter();
    names
        .map(|name| outline.info(&name).unwrap().shape.iter().product::<usize>())
        .sum()
}

#[test]
fn large_models_have_their_published_sizes() {
    // As their model cards count them.
    assert_eq!(weights(&scaling("bloom-176b.json")), 176_247_271_424);
    assert_eq!(weights(&scaling("llama-3.1-405b.json")), 405_853_388_800);
    let opt = weights(&scaling("opt-175b.json")) as f64;
    assert!((opt / 175e9 - 1.0).abs() < 0.005, "{opt}");
    let experts = scaling("moe-256.json");
    let of_experts: Vec<OutlinedLayer> = experts
        .layers()
        .into_iter()
        .filter(|layer| layer.expert.is_some())
        .collect();
    assert_eq!(of_experts.len(), 94 * 256 * 3);
    let last = of_experts.last().unwrap();
    assert_eq!((last.block, last.expert), (93, Some(255)));
    assert_eq!(last.name, "model.layers.93.mlp.experts.255.down_proj");
}
