//! Where credentials come from, in which order; and that they show up nowhere.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prebake::fixture::full;

use crate::answers::{header, text};
use crate::support::content::demo;
use crate::support::prebake::{Run, command, prebake};
use crate::support::registry::{TestRegistry, respond};

const HELLO: &str = "demo/hello:1.0";

/// A registry that wants Basic, and remembers what it was given.
fn basic() -> (TestRegistry, Arc<Mutex<Vec<String>>>) {
    let given: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = given.clone();
    let registry = TestRegistry::faulty(demo(), move |request| {
        let authorization = header(request, "authorization");
        let Some(encoded) = authorization.strip_prefix("Basic ") else {
            return Some(respond(401, &[("www-authenticate", "Basic realm=\"r\"")], full("")));
        };
        log.lock().unwrap().push(String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap());
        None
    });
    (registry, given)
}

fn auths(registry: &str, pair: &str) -> String {
    format!(r#"{{"auths": {{"{registry}": {{"auth": "{}"}}}}}}"#, STANDARD.encode(pair))
}

/// A program in `dir` that says something.
fn program(dir: &Path, name: &str, script: &str) -> PathBuf {
    let path = dir.join(name);
    fs::create_dir_all(dir).unwrap();
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn bake(root: &Path, reference: &str, set: impl FnOnce(&mut Command)) -> Run {
    let mut command = command();
    command.args(["bake", "--tries", "2", "--platform", "linux/amd64", "--root"]).arg(root).arg(reference);
    set(&mut command);
    command.output().unwrap().into()
}

#[test]
fn every_source_in_its_order() {
    let (registry, given) = basic();
    let name = registry.name();
    let dir = tempfile::tempdir().unwrap();
    let at = |part: &str| dir.path().join(part);
    let write = |part: &str, text: &str| {
        fs::create_dir_all(at(part).parent().unwrap()).unwrap();
        fs::write(at(part), text).unwrap();
    };
    let bins = format!("{}:{}", at("bin").display(), std::env::var("PATH").unwrap());
    write("creds", &format!("# ours\n\nother.example x:y\n{name} file:p w\n"));
    write("named.json", &auths(&name, "named:p"));
    write("docker/config.json", &auths(&name, "docker:p"));
    write("run/containers/auth.json", &auths(&name, "podman:p"));
    write("config/containers/auth.json", &auths(&format!("{name}/demo"), "fallback:p"));
    write(
        "kubelet.yaml",
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: provider\n  matchImages: [\"*.*.*.*:*\", \"127.0.0.1\"]\n  defaultCacheDuration: 10m\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n",
    );
    fs::write(at("kubelet.yaml"), fs::read_to_string(at("kubelet.yaml")).unwrap().replace("*.*.*.*:*", &name)).unwrap();
    program(
        &at("plugins"),
        "provider",
        &format!(
            r#"cat > /dev/null; echo '{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry","auth":{{"{name}":{{"username":"kubelet","password":"p"}}}}}}'"#
        ),
    );
    // The first source first; then each is taken away.
    for (user, password, without) in [
        ("given", "p", "creds-flag"),
        ("file", "p w", "creds"),
        ("named", "p", "named.json"),
        ("docker", "p", "docker/config.json"),
        ("podman", "p", "run/containers/auth.json"),
        ("fallback", "p", "config/containers/auth.json"),
        ("kubelet", "p", "kubelet.yaml"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let set = |command: &mut Command| {
            command.env("PATH", &bins).env("REGISTRY_AUTH_FILE", at("named.json")).env("DOCKER_CONFIG", at("docker"));
            command.env("XDG_RUNTIME_DIR", at("run")).env("XDG_CONFIG_HOME", at("config"));
            if user == "given" {
                command.args(["--creds", "given:p"]);
            }
            if at("creds").exists() {
                command.arg("--creds-file").arg(at("creds"));
            }
            command.arg("--image-credential-provider-config").arg(at("kubelet.yaml"));
            command.arg("--image-credential-provider-bin-dir").arg(at("plugins"));
        };
        bake(root.path(), &registry.reference(HELLO), set).expect(0);
        let given = std::mem::take(&mut *given.lock().unwrap());
        assert_eq!(given.len(), 5);
        assert!(given.iter().all(|pair| *pair == format!("{user}:{password}")), "{user}: {given:?}");
        let _ = fs::remove_file(at(without));
    }
}

#[test]
fn helpers_are_asked_once_and_only_when_needed() {
    let (registry, given) = basic();
    let name = registry.name();
    let dir = tempfile::tempdir().unwrap();
    let asked = dir.path().join("asked");
    let helper = format!(
        "server=$(cat); echo \"$1 $server\" >> {}; echo '{{\"ServerURL\":\"x\",\"Username\":\"helped\",\"Secret\":\"s\"}}'",
        asked.display()
    );
    program(dir.path(), "docker-credential-test", &helper);
    program(dir.path(), "docker-credential-empty", "echo 'credentials not found in native keychain'; exit 1");
    program(dir.path(), "docker-credential-bad", "cat >/dev/null; echo 'the vault is sealed' >&2; exit 1");
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let run = |config: &str, code: i32| {
        fs::write(dir.path().join("config.json"), config).unwrap();
        let root = tempfile::tempdir().unwrap();
        bake(root.path(), &registry.reference(HELLO), |command| {
            command.env("DOCKER_CONFIG", dir.path()).env("PATH", &path);
        })
        .expect(code)
    };
    for config in [format!(r#"{{"credHelpers": {{"{name}": "test"}}}}"#), r#"{"credsStore": "test"}"#.to_owned()] {
        run(&config, 0);
        assert_eq!(fs::read_to_string(&asked).unwrap(), format!("get {name}\n"));
        fs::remove_file(&asked).unwrap();
        assert!(given.lock().unwrap().drain(..).all(|pair| pair == "helped:s"));
    }
    let refused = run(r#"{"credsStore": "empty"}"#, 4);
    assert!(refused.stderr.contains("to anonymous users"), "{}", refused.stderr);
    let refused = run(r#"{"credsStore": "bad"}"#, 4);
    assert!(
        refused.stderr.contains("docker-credential-bad gave no credentials for")
            && refused.stderr.contains("the vault is sealed"),
        "{}",
        refused.stderr
    );
    let refused = run(r#"{"credsStore": "missing"}"#, 4);
    assert!(
        refused.stderr.contains("docker-credential-missing") && refused.stderr.contains("cannot be run"),
        "{}",
        refused.stderr
    );
    // Nobody asked for credentials, and so nobody asks a helper.
    let open = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), r#"{"credsStore": "bad"}"#).unwrap();
    bake(root.path(), &open.reference(HELLO), |command| {
        command.env("DOCKER_CONFIG", dir.path()).env("PATH", &path);
    })
    .expect(0);
}

/// A registry with a token server of its own, which gives tokens that live for so many seconds.
struct Tokens {
    registry: TestRegistry,
    /// Method, query or form, and authorization of requests for tokens.
    log: Arc<Mutex<Vec<(String, String, String)>>>,
}

fn tokens(life: u64) -> Tokens {
    let log: Arc<Mutex<Vec<(String, String, String)>>> = Arc::default();
    let own = log.clone();
    let issued: Arc<Mutex<Option<(String, Instant)>>> = Arc::default();
    let registry = TestRegistry::faulty(demo(), move |request| {
        let mut issued = issued.lock().unwrap();
        if request.uri().path() == "/token" {
            let mut log = own.lock().unwrap();
            let query = request.uri().query().unwrap_or_default().to_owned();
            log.push((request.method().to_string(), query, header(request, "authorization")));
            let token = format!("token-{}", log.len());
            *issued = Some((format!("Bearer {token}"), Instant::now()));
            return Some(text(200, &format!(r#"{{"access_token":"{token}","expires_in":{life}}}"#)));
        }
        let authorization = header(request, "authorization");
        std::thread::sleep(Duration::from_millis(if life == 1 { 300 } else { 0 }));
        let good = issued
            .as_ref()
            .is_some_and(|(token, when)| *token == authorization && when.elapsed() < Duration::from_secs(life));
        let challenge = format!(
            "Bearer realm=\"http://{}/token\",service=\"s t\",scope=\"repository:demo/hello:pull,push\"",
            header(request, "host")
        );
        (!good).then(|| respond(401, &[("www-authenticate", &challenge)], full("")))
    });
    Tokens { registry, log }
}

#[test]
fn one_token_for_all_and_identity_tokens_by_post() {
    let Tokens { registry, log } = tokens(300);
    let dir = tempfile::tempdir().unwrap();
    let name = registry.name();
    for (config, method, authorization) in [
        (auths(&name, "user:secret"), "GET", "Basic dXNlcjpzZWNyZXQ="),
        (format!(r#"{{"auths": {{"{name}": {{"identitytoken": "refresh-me"}}}}}}"#), "POST", ""),
        ("{}".to_owned(), "GET", ""),
    ] {
        fs::write(dir.path().join("config.json"), config).unwrap();
        let root = tempfile::tempdir().unwrap();
        bake(root.path(), &registry.reference(HELLO), |command| {
            command.env("DOCKER_CONFIG", dir.path());
        })
        .expect(0);
        let log = std::mem::take(&mut *log.lock().unwrap());
        let [(asked, query, given)] = &log[..] else { panic!("{log:?}") };
        assert_eq!((asked.as_str(), given.as_str()), (method, authorization));
        if method == "GET" {
            assert_eq!(query, "scope=repository%3Ademo%2Fhello%3Apull%2Cpush&service=s+t");
        }
    }
    // "Never" is a number too large for any clock.
    let root = tempfile::tempdir().unwrap();
    bake(root.path(), &tokens(9_223_372_036_854_775_807).registry.reference(HELLO), |_| {}).expect(0);
    // A token for the registry itself needs no exchange.
    let direct = TestRegistry::faulty(demo(), |request| {
        let good = header(request, "authorization") == "Bearer direct";
        (!good).then(|| respond(401, &[("www-authenticate", "Bearer realm=\"http://127.0.0.1:1/\"")], full("")))
    });
    fs::write(
        dir.path().join("config.json"),
        format!(r#"{{"auths": {{"{}": {{"registrytoken": "direct"}}}}}}"#, direct.name()),
    )
    .unwrap();
    let root = tempfile::tempdir().unwrap();
    bake(root.path(), &direct.reference(HELLO), |command| {
        command.env("DOCKER_CONFIG", dir.path());
    })
    .expect(0);
}

#[test]
fn tokens_are_renewed_before_they_end() {
    let Tokens { registry, log } = tokens(1);
    let root = tempfile::tempdir().unwrap();
    // Five requests of 0.3 s: a token is good for two or three of them, and none of them is refused but the first.
    bake(root.path(), &registry.reference(HELLO), |command| {
        command.args(["--concurrency", "1"]);
    })
    .expect(0);
    let requests = registry.asked();
    let tokens = log.lock().unwrap().len();
    assert!((2..=5).contains(&tokens), "{tokens}");
    assert_eq!(requests.len(), 1 + 5 + tokens, "{requests:?}");
}

#[test]
fn bad_credentials_of_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| -> Run {
        let mut command = command();
        command.args(["bake", "--root"]).arg(dir.path()).args(args);
        let run: Run = command.output().unwrap().into();
        run.expect(2)
    };
    let refused = run(&["a.example/a", "b.example/b", "--creds", "u:hush"]);
    assert!(
        refused.stderr.contains("--creds are for one registry, and the images are of a.example, b.example"),
        "{}",
        refused.stderr
    );
    let refused = run(&["a.example/a", "--creds", "hush"]);
    assert!(
        refused.stderr.contains("--creds is not USER:PASSWORD") && !refused.stderr.contains("hush"),
        "{}",
        refused.stderr
    );
    let file = dir.path().join("creds");
    fs::write(&file, "a.example u:p\nhush\n").unwrap();
    let refused = run(&["a.example/a", "--creds-file", file.to_str().unwrap()]);
    assert!(
        refused.stderr.contains("creds:2 is not REGISTRY USER:PASSWORD") && !refused.stderr.contains("hush"),
        "{}",
        refused.stderr
    );
    let config = dir.path().join("kubelet.json");
    for (json, word) in [
        ("{", "is not a CredentialProviderConfig of kubelet"),
        (
            r#"{"providers":[{"name":"p","matchImages":["*"],"defaultCacheDuration":"1m","apiVersion":"credentialprovider.kubelet.k8s.io/v1alpha1"}]}"#,
            "prebake only credentialprovider.kubelet.k8s.io/v1",
        ),
        (
            r#"{"providers":[{"name":"../p","matchImages":["*"],"defaultCacheDuration":"1m","apiVersion":"credentialprovider.kubelet.k8s.io/v1"}]}"#,
            "not the name of a program",
        ),
    ] {
        fs::write(&config, json).unwrap();
        let config = config.to_str().unwrap();
        let refused = run(&[
            "a.example/a",
            "--image-credential-provider-config",
            config,
            "--image-credential-provider-bin-dir",
            "/",
        ]);
        assert!(refused.stderr.contains(word), "{}", refused.stderr);
    }
}

/// What a plugin says is kept for what it says, and for so long.
#[test]
fn plugins_are_asked_as_often_as_they_say() {
    for (kind, duration, times) in
        [("Image", "1h", 2), ("Registry", "1h", 1), ("Global", "1h", 1), ("Registry", "0s", 2)]
    {
        let (registry, _) = basic();
        let name = registry.name();
        let dir = tempfile::tempdir().unwrap();
        let asked = dir.path().join("asked");
        program(
            dir.path(),
            "provider",
            &format!(
                r#"echo "$WHO $1 $(cat)" >> {}; echo '{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"{kind}","cacheDuration":"{duration}","auth":{{"{name}":{{"username":"k","password":"p"}}}}}}'"#,
                asked.display()
            ),
        );
        let config = dir.path().join("config.json");
        let json = format!(
            r#"{{"apiVersion":"kubelet.config.k8s.io/v1","kind":"CredentialProviderConfig","providers":[{{"name":"provider","matchImages":["{name}"],"defaultCacheDuration":"1m","apiVersion":"credentialprovider.kubelet.k8s.io/v1","args":["get"],"env":[{{"name":"WHO","value":"us"}}]}}]}}"#
        );
        fs::write(&config, json).unwrap();
        let root = tempfile::tempdir().unwrap();
        bake(root.path(), &registry.reference(HELLO), |command| {
            command.arg(registry.reference("demo/zstd:1.0")).arg("--per-host").arg("1");
            command.arg("--image-credential-provider-config").arg(&config);
            command.arg("--image-credential-provider-bin-dir").arg(dir.path());
        })
        .expect(0);
        let asked = fs::read_to_string(&asked).unwrap();
        assert_eq!(asked.lines().count(), times, "{kind} {duration}: {asked}");
        let first = asked.lines().next().unwrap();
        let request = first.strip_prefix("us get ").unwrap();
        let request: serde_json::Value = serde_json::from_str(request).unwrap();
        assert_eq!(request["kind"], "CredentialProviderRequest");
        assert!(request["image"].as_str().unwrap().starts_with(&format!("{name}/demo/")), "{request}");
    }
}

#[test]
fn secrets_show_up_nowhere() {
    const SECRETS: [&str; 4] = ["hush-password", "aHVzaC1wYXNzd29yZA", "token-1", "refresh-hush"];
    let dir = tempfile::tempdir().unwrap();
    let args = dir.path().join("args");
    // A helper sees the arguments of its parent, and its own.
    let helper = format!(
        r#"cat > /dev/null; tr '\0' ' ' < /proc/$PPID/cmdline >> {0}; echo "$@" >> {0}; env >> {0}; echo '{{"Username":"u","Secret":"hush-password"}}'"#,
        args.display()
    );
    program(dir.path(), "docker-credential-test", &helper);
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let Tokens { registry, log } = tokens(300);
    let refusing = TestRegistry::faulty(demo(), |request| {
        let challenge = format!("Bearer realm=\"http://{}/token\",service=\"s\"", header(request, "host"));
        Some(respond(401, &[("www-authenticate", &challenge)], full("")))
    });
    let failing = TestRegistry::faulty(demo(), |request| {
        let wants = header(request, "authorization").is_empty();
        Some(if wants { respond(401, &[("www-authenticate", "Basic realm=\"r\"")], full("")) } else { text(500, "") })
    });
    for (server, code) in [(&registry, 0), (&refusing, 4), (&failing, 1)] {
        for config in [
            r#"{"credsStore": "test"}"#.to_owned(),
            auths(&server.name(), "u:hush-password"),
            format!(r#"{{"auths": {{"{}": {{"identitytoken": "refresh-hush"}}}}}}"#, server.name()),
        ] {
            if code == 1 && config.contains("identitytoken") {
                continue;
            }
            for more in ["--json", "--pin"] {
                let root = tempfile::tempdir().unwrap();
                fs::write(dir.path().join("config.json"), &config).unwrap();
                let run = bake(root.path(), &server.reference(HELLO), |command| {
                    command.env("DOCKER_CONFIG", dir.path()).env("PATH", &path).arg(more);
                });
                assert_eq!(run.code, code, "{}{}", run.stdout, run.stderr);
                let mut all = vec![run.stdout.into_bytes(), run.stderr.into_bytes()];
                files(root.path(), &mut all);
                all.extend(fs::read(&args));
                for secret in SECRETS {
                    let found = all.iter().any(|text| text.windows(secret.len()).any(|part| part == secret.as_bytes()));
                    assert!(!found, "{secret} with {config}");
                }
                log.lock().unwrap().clear();
            }
        }
    }
    assert!(fs::read_to_string(&args).unwrap().contains("prebake bake"));
}

fn files(dir: &Path, out: &mut Vec<Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, out);
        } else {
            out.push(fs::read(path).unwrap());
        }
    }
}

#[test]
fn credentials_are_for_one_host() {
    // A redirect, a mirror, and a token server without TLS get none of another's.
    let (registry, given) = basic();
    let thief = TestRegistry::faulty(demo(), |request| {
        assert_eq!(header(request, "authorization"), "");
        Some(text(404, ""))
    });
    let hosts = tempfile::tempdir().unwrap();
    fs::create_dir(hosts.path().join(registry.name())).unwrap();
    let toml = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", registry.name(), thief.name());
    fs::write(hosts.path().join(registry.name()).join("hosts.toml"), toml).unwrap();
    let root = tempfile::tempdir().unwrap();
    bake(root.path(), &registry.reference(HELLO), |command| {
        command.args(["--creds", "u:p", "--hosts-dir"]).arg(hosts.path());
    })
    .expect(0);
    assert_eq!(given.lock().unwrap().len(), 5);
    assert!(!thief.asked().is_empty());
    prebake(root.path(), "check").expect(0);
}
