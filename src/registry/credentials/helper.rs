//! Programs that know credentials: Docker's helpers (`docker-credential-*`), and how any such program is run.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::{Credential, CredentialsError, Found, HELPER_CACHE, HELPER_TIMEOUT, Result, Said};

/// How much of what a program says is read, in bytes.
const MAX_OUTPUT: u64 = 1 << 20;
/// What a helper says that has nothing (`credentials.ErrCredentialsNotFound`).
const NOT_FOUND: &str = "credentials not found in native keychain";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Asks a Docker credential helper for a registry.
pub(super) async fn get(helper: &str, registry: &str, key: String, from: String) -> Result<Said> {
    let program = format!("docker-credential-{helper}");
    let failed = |why: String| CredentialsError::Helper { helper: program.clone(), registry: registry.to_owned(), why };
    if helper.contains('/') {
        return Err(failed("its name has a slash".to_owned()));
    }
    // Docker Hub's key in all of Docker's stores.
    let server = if registry == "docker.io" { "https://index.docker.io/v1/" } else { registry };
    let run = Run { program: program.clone().into(), args: &["get".to_owned()], env: &[], limit: HELPER_TIMEOUT };
    let (ok, output, complaint) = run.output(server.as_bytes()).await.map_err(failed)?;
    let entries = if ok {
        // What it said may be a secret, and so is no part of an error.
        let answer: Answer =
            serde_json::from_slice(&output).map_err(|_| failed("it answered something else".to_owned()))?;
        let credential = Credential::pair(answer.username, answer.secret);
        vec![(None, Found { credential, from })]
    } else if String::from_utf8_lossy(&output).contains(NOT_FOUND) {
        Vec::new()
    } else {
        return Err(failed(complaint));
    };
    Ok(Said { key, duration: HELPER_CACHE, entries })
}

/// A program to run.
pub(super) struct Run<'r> {
    pub(super) program: OsString,
    pub(super) args: &'r [String],
    /// Added to this process's own.
    pub(super) env: &'r [(String, String)],
    pub(super) limit: Duration,
}

impl Run<'_> {
    /// Gives it `input`; whether it succeeded, what it said, and what it complained of. Else why it could not be run.
    pub(super) async fn output(&self, input: &[u8]) -> Result<(bool, Vec<u8>, String), String> {
        let mut child = Command::new(&self.program)
            .args(self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("it cannot be run: {error}"))?;
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            unreachable!("all three are piped")
        };
        let talk = async {
            let (mut said, mut complained) = (Vec::new(), Vec::new());
            let write = async {
                // It may answer without reading.
                let _ = stdin.write_all(input).await;
                drop(stdin);
            };
            let mut out = stdout.take(MAX_OUTPUT);
            let mut err = stderr.take(MAX_OUTPUT);
            let ((), read, complaint) =
                futures_util::join!(write, out.read_to_end(&mut said), err.read_to_end(&mut complained));
            read.and(complaint)?;
            child.wait().await.map(|status| (status, said, complained))
        };
        match timeout(self.limit, talk).await {
            Err(_) => Err(format!("it took longer than {} s", self.limit.as_secs())),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok((status, said, complained))) => {
                let words = String::from_utf8_lossy(&complained);
                let words: String = words.trim().chars().filter(|c| !c.is_control()).take(300).collect();
                let complaint = if words.is_empty() { status.to_string() } else { words };
                Ok((status.success(), said, complaint))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn programs_end_in_time() {
        let run = |args: &'static [&'static str], limit: Duration| async move {
            let args: Vec<String> = args.iter().map(ToString::to_string).collect();
            Run { program: "sh".into(), args: &args, env: &[], limit }.output(b"in").await
        };
        let long = Duration::from_secs(20);
        let started = std::time::Instant::now();
        let late = run(&["-c", "sleep 60"], Duration::from_millis(200)).await;
        assert_eq!(late.err().as_deref(), Some("it took longer than 0 s"));
        assert!(started.elapsed() < long);
        let (ok, said, complaint) = run(&["-c", "cat; echo no >&2; exit 3"], long).await.expect("it runs");
        assert_eq!((ok, &*said, &*complaint), (false, &b"in"[..], "no"));
        let (ok, said, _) = run(&["-c", "echo out"], long).await.expect("one that does not listen");
        assert_eq!((ok, &*said), (true, &b"out\n"[..]));
    }
}
