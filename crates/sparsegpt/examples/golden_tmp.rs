//! tmp
#![allow(clippy::all, missing_docs, clippy::unwrap_used)]
use ndarray::{Array2, ArrayView2};
use sparsegpt::mask::*;
use sparsegpt::*;
#[derive(Debug)]
struct RefCount(f64, bool);
impl MaskPolicy for RefCount {
    fn describe(&self) -> String { "ref".into() }
    fn choose(&self, b: &MaskBlock<'_>) -> Result<BlockMask> {
        let n = b.rows * b.columns.len();
        let k = (n as f64 * self.0) as u64 + 1;
        Ok(BlockMask::Lowest { target: b.pruned_before + k, total: b.pruned_before + k })
    }
}
fn run<B: backend::Backend>(solver: &Solver<B>) {
    let dir = "../shared/golden/layers";
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    names.sort();
    for p in names {
        let data = std::fs::read(&p).unwrap();
        let (_, meta) = safetensors::SafeTensors::read_metadata(&data).unwrap();
        let case: serde_json::Value = serde_json::from_str(&meta.metadata().as_ref().unwrap()["case"]).unwrap();
        let t = safetensors::SafeTensors::deserialize(&data).unwrap();
        let get = |n: &str| -> Array2<f32> { let v = t.tensor(n).unwrap(); let s = v.shape(); Array2::from_shape_vec((s[0], s[1]), v.data().chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()).unwrap() };
        let (w, h, reference) = (get("weight"), get("hessian"), get("pruned"));
        let f = |k: &str| case[k].as_f64().unwrap_or(0.0);
        let b = |k: &str| case[k].as_bool().unwrap_or(false);
        for refcount in [false, true] {
            let mask: std::sync::Arc<dyn MaskPolicy> = if f("n") > 0.0 { std::sync::Arc::new(Pattern::n_of_m(f("n") as usize, f("m") as usize).unwrap()) }
                else if refcount { std::sync::Arc::new(RefCount(f("sparsity"), true)) } else { std::sync::Arc::new(Pattern::unstructured(f("sparsity")).unwrap()) };
            let mut s = LayerSettings::with_mask(mask).with_damping(f("damping")).with_block_size(f("block_size") as usize).with_mask_block_size(f("block_size") as usize);
            if f("bits") < 16.0 {
                let mut q = UniformGrid::new(f("bits") as u32).unwrap().with_symmetric(b("symmetric")).with_mse(b("mse"));
                if !b("per_channel") { q = q.with_granularity(quant::Granularity::PerTensor); }
                s = s.with_quantizer(q);
            }
            let mut hess = solver.hessian_from(h.view()).unwrap();
            let out = solver.prune(w.view(), &mut hess, &s).unwrap();
            let e = |a: ArrayView2<f32>| { let d = (&w - &a).mapv(f64::from); let hh = h.mapv(f64::from); (d.dot(&hh) * &d).sum() };
            let same = out.weights.iter().zip(&reference).filter(|(a, b)| (**a == 0.0) == (**b == 0.0)).count() as f64 / w.len() as f64;
            println!("{:50} ref={} ratio {:.6} pattern {:.5} loss {:.4}/{:.4} err {:.5} meas {:.5} {:?} {}", p.file_stem().unwrap().to_str().unwrap(), refcount as u8, e(out.weights.view()) / f("reconstruction_error"), same, out.report.solver_loss.unwrap(), f("solver_loss"), out.report.relative_error.unwrap(), f("relative_error"), out.report.precision.unwrap(), out.report.factor_attempts);
        }
    }
}
fn main() {
    run(&Solver::new(backend::Host));
    run(&Solver::new(backend::Cpu::new(2).unwrap()));
    // timing
    for n in [768usize, 2048] {
        let solver = Solver::new(backend::Cpu::new(2).unwrap());
        let mut x = 12345u64;
        let mut rnd = || { x ^= x << 13; x ^= x >> 7; x ^= x << 17; (x >> 40) as f32 / 16777216.0 - 0.5 };
        let xs = Array2::from_shape_fn((2 * n, n), |_| rnd());
        let w = Array2::from_shape_fn((n, n), |_| rnd());
        let mut hess = solver.hessian(n).unwrap();
        let t = std::time::Instant::now();
        hess.update(xs.view()).unwrap();
        println!("gram {:?}", t.elapsed());
        for p in ["50%", "2:4"] {
            let out = solver.prune(w.view(), &mut hess, &LayerSettings::new(p.parse::<Pattern>().unwrap())).unwrap();
            println!("{} {:?}", out.report, out.report.seconds);
        }
    }
}
