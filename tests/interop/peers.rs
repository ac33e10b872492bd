//! Where the real peers are, and daemons that end with the test that started them.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use ::prebake::fixture::Content;

use crate::cri;
use crate::layout;

pub use ::prebake::care::TESTED_RELEASES as RELEASES;
const PATIENCE: Duration = Duration::from_mins(1);

/// The folder `tests/setup` filled; `PREBAKE_PEERS` names another one.
pub fn dir() -> PathBuf {
    let dir = std::env::var_os("PREBAKE_PEERS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/peers"), PathBuf::from);
    assert!(dir.join("bbolt-oracle").exists(), "{} is not set up: run tests/setup first", dir.display());
    dir
}

/// The output of a command that must succeed.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}:\n{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn wait_for(what: &str, log: &Path, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < PATIENCE, "{what} did not start:\n{}", fs::read_to_string(log).unwrap_or_default());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A process that is ended, and waited for, when dropped.
pub struct Daemon(Child);

impl Daemon {
    /// Starts it with its output in a file.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let file = File::create(log).unwrap();
        Self(command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap())
    }

    fn end(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let start = Instant::now();
        while self.0.try_wait().is_ok_and(|status| status.is_none()) {
            if start.elapsed() > PATIENCE {
                let _ = self.0.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

/// The real docker-registry on a free loopback port.
pub struct Registry {
    _daemon: Daemon,
    name: String,
    work: PathBuf,
    data: PathBuf,
}

/// A loopback address with a port that was free a moment ago.
pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

impl Registry {
    pub fn start(work: &Path) -> Self {
        let work = work.join("registry");
        Self::serve(&work, &work.join("data"), "", "")
    }

    /// Another one over the same images, with settings of its own: of HTTP, and at the top level.
    pub fn beside(&self, work: &Path, http: &str, settings: &str) -> Self {
        Self::serve(work, &self.data, http, settings)
    }

    /// One over some folder.
    pub fn serve(work: &Path, data: &Path, http: &str, settings: &str) -> Self {
        let (work, data) = (work.to_owned(), data.to_owned());
        fs::create_dir_all(&work).unwrap();
        let name = free_address();
        let config = work.join("config.yml");
        let storage = data.display();
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: info, accesslog: {{disabled: false}}}}\nstorage: {{filesystem: {{rootdirectory: {storage}}}}}\nhttp: {{addr: \"{name}\"{http}}}\n{settings}"
            ),
        )
        .unwrap();
        let mut command = Command::new(dir().join("registry/usr/bin/docker-registry"));
        let daemon = Daemon::start(command.arg("serve").arg(&config), &work.join("log"));
        wait_for("docker-registry", &work.join("log"), || std::net::TcpStream::connect(&name).is_ok());
        Self { _daemon: daemon, name, work, data }
    }

    /// What it wrote, a line for each request among it.
    pub fn log(&self) -> String {
        fs::read_to_string(self.work.join("log")).unwrap()
    }

    /// Its name in references.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Pushes every image with real skopeo, every byte as it is; gives the references.
    pub fn push(&self, content: &Content) -> Vec<String> {
        let push = |(repository, tag): &(String, String)| {
            let dir = self.work.join("push");
            let _ = fs::remove_dir_all(&dir);
            layout::write_dir(content, repository, tag, &dir);
            let reference = format!("{}/{repository}:{tag}", self.name);
            Self::push_dir(&dir, &reference);
            reference
        };
        content.tags.keys().map(push).collect()
    }

    /// Pushes a `dir:` layout.
    pub fn push_dir(dir: &Path, reference: &str) {
        run(Command::new("skopeo")
            .args(["copy", "--quiet", "--all", "--preserve-digests", "--dest-tls-verify=false"])
            .args([format!("dir:{}", dir.display()), format!("docker://{reference}")]));
    }
}

/// The real nginx on a free loopback port, with the `http` block's settings given; `PORT` in them is its own.
pub struct Nginx {
    daemon: Daemon,
    name: String,
}

impl Nginx {
    pub fn start(work: &Path, settings: &str) -> Self {
        fs::create_dir_all(work).unwrap();
        let name = free_address();
        let (at, config) = (work.display(), work.join("nginx.conf"));
        let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {at}/{kind};\n"))
            .concat();
        let settings = settings.replace("ADDRESS", &name);
        fs::write(
            &config,
            format!(
                "daemon off; user root; worker_processes 2; pid {at}/pid; error_log {at}/log;\nevents {{}}\nhttp {{ access_log {at}/access; {temp}{settings} }}\n"
            ),
        )
        .unwrap();
        let mut command = Command::new(dir().join("nginx/usr/sbin/nginx"));
        let daemon = Daemon::start(command.arg("-p").arg(work).arg("-c").arg(&config), &work.join("output"));
        wait_for("nginx", &work.join("output"), || std::net::TcpStream::connect(&name).is_ok());
        Self { daemon, name }
    }

    /// Its name in references.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Kills the processes that serve, with all their connections; others take their place.
    pub fn cut(&self) {
        let _ = Command::new("pkill").args(["-9", "-P", &self.daemon.0.id().to_string()]).status();
    }
}

/// A real containerd, its CRI plugin on, with its own sockets and state.
pub struct Containerd {
    daemon: Option<Daemon>,
    release: &'static str,
    work: PathBuf,
    root: PathBuf,
    sandbox: String,
    /// TOML that its configuration ends in.
    pub settings: &'static str,
}

impl Containerd {
    /// Starts a release on a containerd root; `work` is for its sockets, state and log.
    pub fn start(release: &'static str, containerd_root: &Path, work: &Path) -> Self {
        let mut containerd = Self::new(release, containerd_root, work, "registry.invalid/pause:1");
        containerd.launch();
        containerd
    }

    /// One that is not started yet; `sandbox` is the image from which CRI runs a pod's sandbox.
    pub fn new(release: &'static str, containerd_root: &Path, work: &Path, sandbox: &str) -> Self {
        fs::create_dir_all(work).unwrap();
        let (work, root, sandbox) = (work.to_owned(), containerd_root.to_owned(), sandbox.to_owned());
        Self { daemon: None, release, work, root, sandbox, settings: "" }
    }

    fn bin(&self, name: &str) -> PathBuf {
        dir().join(format!("containerd-{}/usr/bin/{name}", self.release))
    }

    pub fn socket(&self) -> PathBuf {
        self.work.join("c.sock")
    }

    /// Whether it has the service of sandbox records.
    pub fn has_sandbox_store(&self) -> bool {
        self.release != "1.6.20"
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.work.join("log")).unwrap()
    }

    /// Starts it, or starts it again.
    pub fn launch(&mut self) {
        let Self { sandbox, settings, .. } = self;
        let config = self.work.join("config.toml");
        let (root, work) = (self.root.display(), self.work.display());
        fs::write(
            &config,
            format!(
                "version = 2\nroot = \"{root}\"\nstate = \"{work}/state\"\n\
                 [grpc]\naddress = \"{work}/c.sock\"\n[ttrpc]\naddress = \"{work}/c.sock.ttrpc\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\"]\nstream_server_port = \"0\"\nsandbox_image = \"{sandbox}\"\nrestrict_oom_score_adj = true\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\nRoot = \"{work}/runc\"\n{settings}"
            ),
        )
        .unwrap();
        let log = self.work.join("log");
        let path = format!(
            "{}:{}:{}",
            self.bin("").display(),
            dir().join("runc/usr/sbin").display(),
            std::env::var("PATH").unwrap()
        );
        let mut command = Command::new(self.bin("containerd"));
        self.daemon = Some(Daemon::start(command.arg("--config").arg(&config).env("PATH", path), &log));
        wait_for("containerd", &log, || {
            self.try_ctr("version").status.success()
                && fs::read_to_string(&log).unwrap().contains("containerd successfully booted")
                && cri::is_ready(&self.socket())
        });
    }

    /// Ends it and waits.
    pub fn stop(&mut self) {
        self.daemon = None;
    }

    /// Ends it and starts it again.
    pub fn restart(&mut self) {
        self.stop();
        self.launch();
    }

    /// Ends the containers it left running, and their shims and mounts.
    fn end_containers(&self) {
        let pids = |wanted: &dyn Fn(u32) -> bool| -> Vec<u32> {
            let all = fs::read_dir("/proc").unwrap().flatten();
            let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            all.filter(|pid| wanted(*pid)).collect()
        };
        let read = |pid: u32, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let own = format!("{}/c.sock", self.work.display());
        let shims =
            pids(&|pid| read(pid, "cmdline").contains("containerd-shim") && read(pid, "cmdline").contains(&own));
        let parent = |pid: u32| read(pid, "stat").rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok();
        let containers = pids(&|pid| parent(pid).is_some_and(|parent| shims.contains(&parent)));
        for pid in containers.into_iter().chain(shims) {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for mount in mounts.filter(|mount| Path::new(mount).starts_with(&self.work)) {
            let _ = Command::new("umount").args(["-l", mount]).status();
        }
    }

    fn try_ctr(&self, arguments: &str) -> Output {
        self.ctr_command().args(arguments.split_whitespace()).output().unwrap()
    }

    /// What makes `ctr run` and `ctr containers create` keep runc's state in a folder of its own.
    pub fn runc_root(&self) -> String {
        format!("--runc-root {}/runc", self.work.display())
    }

    pub fn ctr_command(&self) -> Command {
        let mut command = Command::new(self.bin("ctr"));
        command.arg("--address").arg(self.socket()).args(["--namespace", "k8s.io"]);
        command
    }

    /// Runs `ctr` in a namespace, which must succeed.
    #[track_caller]
    pub fn ctr_in(&self, namespace: &str, arguments: &str) -> String {
        run(self.ctr_command().args(["--namespace", namespace]).args(arguments.split_whitespace()))
    }

    /// Runs `ctr` in Kubernetes' namespace, which must succeed.
    #[track_caller]
    pub fn ctr(&self, arguments: &str) -> String {
        run(self.ctr_command().args(arguments.split_whitespace()))
    }

    /// What a container of an image says; `arguments` replace its own command.
    #[track_caller]
    pub fn run(&self, image: &str, name: &str, arguments: &[&str]) -> String {
        // ctr may miss what a task says that ends at once, so one that says nothing is run again.
        let mut said = String::new();
        for _ in 0..5 {
            let mut command = self.ctr_command();
            command.args(["run", "--rm"]).args(self.runc_root().split(' ')).args([image, name]).args(arguments);
            said = run(&mut command);
            if !said.is_empty() {
                break;
            }
        }
        said
    }

    /// Starts a container that stays.
    #[track_caller]
    pub fn run_detached(&self, image: &str, name: &str, arguments: &[&str]) {
        // runc 1.1 fails now and then on a busy machine, with an error that it has no words for.
        const WORDLESS: &str = "error during container init: %!w(<nil>)";
        for last in [false, false, true] {
            let mut command = self.ctr_command();
            command.args(["run", "-d"]).args(self.runc_root().split(' ')).args([image, name]).args(arguments);
            let output = command.output().unwrap();
            let said = text(&output.stderr);
            if output.status.success() {
                return;
            }
            assert!(!last && said.contains(WORDLESS), "{command:?}:\n{said}");
            let _ = self.ctr_command().args(["tasks", "delete", "--force", name]).output();
            let _ = self.ctr_command().args(["containers", "delete", name]).output();
        }
    }

    /// Exports an image for a platform into an archive.
    #[track_caller]
    pub fn export(&self, namespace: &str, platform: &str, archive: &Path, image: &str) {
        // 2.1's ctr leaves by itself when the transfer is over, though it may still be writing the archive (`NewImageExportStream`
        // copies the stream in a goroutine that nobody waits for); 1.6 knows no transfers, and so no such option.
        let local = if self.release.starts_with("1.6.") { "" } else { "--local" };
        self.ctr_in(namespace, &format!("images export {local} --platform {platform} {} {image}", archive.display()));
    }

    /// A garbage collection, waited for: what deleting a lease with `--sync` starts.
    pub fn collect_garbage(&self) {
        let lease = self.ctr("leases create");
        self.ctr(&format!("leases delete --sync {}", lease.split_whitespace().next().unwrap()));
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.stop();
        self.end_containers();
    }
}

/// A small file system of its own, unmounted when dropped.
pub struct Tmpfs(pub PathBuf);

impl Tmpfs {
    pub fn mount(path: PathBuf, options: &str) -> Self {
        Self::mount_as("tmpfs", path, options)
    }

    /// One of another kind.
    pub fn mount_as(kind: &str, path: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&path).unwrap();
        run(Command::new("mount").args(["-t", kind, "-o", options, "prebake-test"]).arg(&path));
        Self(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
