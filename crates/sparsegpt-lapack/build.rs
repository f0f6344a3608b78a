//! Links the system's OpenBLAS.

fn main() -> Result<(), String> {
    println!("cargo:rerun-if-changed=build.rs");
    // Documentation needs no library.
    if std::env::var_os("DOCS_RS").is_some() {
        return Ok(());
    }
    pkg_config::probe_library("openblas")
        .map(drop)
        .map_err(|error| {
            format!(
                "no OpenBLAS was found; install it with its development files and pkg-config \
                 (Debian: libopenblas-dev, pkg-config): {error}"
            )
        })
}
