//! What a service is made of, brought once into the target folder by the ordinary client of its registry.

use crate::Absent;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The broker's release. Newer ones must be tried by hand: their settings change.
const KAFKA_VERSION: &str = "4.3.1";
/// Of what writes its log: that of its logging facade.
const LOG_VERSION: &str = "1.7.36";

/// Says that all was copied: a copy that was interrupted is begun anew.
const COMPLETE: &str = ".complete";

/// The folder with the broker's libraries.
pub(crate) fn kafka() -> Result<PathBuf, Absent> {
    let folder = target_dir()?.join("services").join(format!("kafka-{KAFKA_VERSION}"));
    let broken = |what: &str, e: std::io::Error| Absent::Broken(format!("{what} {}: {e}", folder.display()));
    fs::create_dir_all(&folder).map_err(|e| broken("cannot make", e))?;
    // Other test binaries may want the same at the same time. Held until the file is closed.
    let lock = File::create(folder.join("lock")).map_err(|e| broken("cannot lock", e))?;
    lock.lock().map_err(|e| broken("cannot lock", e))?;
    let libraries = folder.join("libs");
    if libraries.join(COMPLETE).exists() {
        return Ok(libraries);
    }
    copy(&folder, &libraries)?;
    File::create(libraries.join(COMPLETE)).map_err(|e| broken("cannot finish", e))?;
    Ok(libraries)
}

/// Tests run from `target/PROFILE/deps`, programs from `target/PROFILE`.
pub(crate) fn target_dir() -> Result<PathBuf, Absent> {
    let own = std::env::current_exe().map_err(|e| Absent::Broken(format!("the program's own path: {e}")))?;
    let profile = own.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    let target = profile.and_then(Path::parent).map(Path::to_owned);
    target.ok_or_else(|| Absent::Broken(format!("{} stands in no target folder", own.display())))
}

fn copy(folder: &Path, libraries: &Path) -> Result<(), Absent> {
    let project = folder.join("pom.xml");
    fs::write(&project, pom()).map_err(|e| Absent::Broken(format!("{}: {e}", project.display())))?;
    let output = Command::new("mvn")
        .args(["--batch-mode", "--quiet", "--file"])
        .arg(&project)
        .arg("dependency:copy-dependencies")
        .arg(format!("-DoutputDirectory={}", libraries.display()))
        .arg("-DincludeScope=runtime")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| {
            Absent::Missing(format!("its libraries are fetched by Maven, and `mvn` cannot run: {e}"))
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let first = said.lines().find(|l| l.contains("ERROR")).unwrap_or("no word of why");
    Err(Absent::Missing(format!("Maven could not fetch its libraries: {first}")))
}

fn pom() -> String {
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\">\n\
         <modelVersion>4.0.0</modelVersion>\n\
         <groupId>tidemill</groupId><artifactId>kafka-of-tests</artifactId><version>1</version>\n\
         <packaging>pom</packaging>\n\
         <dependencies>\n\
         <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>\
         <version>{KAFKA_VERSION}</version></dependency>\n\
         <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId>\
         <version>{LOG_VERSION}</version></dependency>\n\
         </dependencies>\n\
         </project>\n"
    )
}
