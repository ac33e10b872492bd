//! A bake, said step by step.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Error;
use crate::bake::{Event, Listener, Policies, Request, Wanted, run};
use crate::metadata::K8S_NAMESPACE;
use crate::oci::Platform;
use crate::registry::{HOSTS_DIR, HostsDirs, Keychain, Options};
use crate::root::{CONTAINERD_ROOT, Root};
use crate::source::{Local, chosen};
use crate::spec::{Named, Policy};

/// Images that are to be put into a root, as `prebake bake` does: what containerd then lists is there, whole, or the bake fails.
///
/// ```no_run
/// let baked = prebake::Bake::new("/mnt/chroot")
///     .image("registry.k8s.io/pause:3.10")
///     .image("oci-archive:images.tar")
///     .platform("linux/arm64")
///     .unpack(true)
///     .run()?;
/// for image in &baked.images {
///     match &image.error {
///         None => println!("{}", image.name),
///         Some(error) => eprintln!("{}: {error}", image.name),
///     }
/// }
/// assert!(baked.is_complete());
/// # Ok::<(), prebake::Error>(())
/// ```
#[derive(Clone)]
#[must_use = "nothing is done before `run`"]
pub struct Bake {
    root: PathBuf,
    images: Vec<String>,
    namespace: String,
    platform: Option<String>,
    unpack: bool,
    pin: bool,
    epoch: Option<u32>,
    plain_http: bool,
    ca_files: Vec<PathBuf>,
    hosts_dir: Option<PathBuf>,
    progress: Option<Progress>,
}

type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// What came of a bake.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Baked {
    /// Each image, in the order asked for.
    pub images: Vec<BakedImage>,
    /// Bytes that came over the network.
    pub fetched: u64,
}

/// What became of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BakedImage {
    /// Its name, as containerd lists it.
    pub name: String,
    /// Why it is not there, if it is not.
    pub error: Option<Error>,
}

impl Baked {
    /// Whether all images are there.
    pub fn is_complete(&self) -> bool {
        self.images.iter().all(|image| image.error.is_none())
    }
}

impl Bake {
    /// Into this root: a chroot, a mounted disk image, an empty directory. In the namespace `k8s.io`, for this machine's platform,
    /// not unpacked.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            images: Vec::new(),
            namespace: K8S_NAMESPACE.to_owned(),
            platform: None,
            unpack: false,
            pin: false,
            epoch: None,
            plain_http: false,
            ca_files: Vec::new(),
            hosts_dir: None,
            progress: None,
        }
    }

    /// One more image: a reference, or a place such as `oci:DIR`, `oci-archive:FILE`, `containerd:ROOT`, as the command takes them.
    pub fn image(mut self, name: impl Into<String>) -> Self {
        self.images.push(name.into());
        self
    }

    /// containerd's namespace.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// The root's platform: `OS/ARCH[/VARIANT]`.
    pub fn platform(mut self, platform: impl Into<String>) -> Self {
        self.platform = Some(platform.into());
        self
    }

    /// Whether layers are unpacked into overlayfs snapshots, which takes root's rights.
    pub fn unpack(mut self, unpack: bool) -> Self {
        self.unpack = unpack;
        self
    }

    /// Whether kubelet must never remove the images.
    pub fn pin(mut self, pin: bool) -> Self {
        self.pin = pin;
        self
    }

    /// When everything was made, in seconds since 1970 (`SOURCE_DATE_EPOCH`); else the images tell, never the clock.
    pub fn source_date_epoch(mut self, seconds: u32) -> Self {
        self.epoch = Some(seconds);
        self
    }

    /// Whether registries that no `hosts.toml` is about are asked without TLS; those on loopback are anyway.
    pub fn plain_http(mut self, plain: bool) -> Self {
        self.plain_http = plain;
        self
    }

    /// A certificate (PEM) that is trusted besides the machine's.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_files.push(path.into());
        self
    }

    /// Where `hosts.toml` of registries are; else in the root, else on this machine, where containerd has them.
    pub fn hosts_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.hosts_dir = Some(path.into());
        self
    }

    /// Hears of bytes that came and of all that are to come, from several threads.
    pub fn progress(mut self, f: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(f));
        self
    }

    /// Does it. Blocks until all images are there or have failed; must not be called inside an asynchronous runtime.
    /// Credentials are those of `$REGISTRY_AUTH_FILE`, Docker's and Podman's files.
    ///
    /// # Errors
    /// When nothing could be begun: a bad name, a running containerd ([`Kind::Busy`](crate::Kind::Busy)), too little room; images fail in
    /// [`Baked::images`].
    pub fn run(&self) -> Result<Baked, Error> {
        crate::install_tls();
        let io = |error: std::io::Error| Error::new(error);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io)?;
        let request = self.request()?;
        let heard =
            Arc::new(Heard { progress: self.progress.clone(), came: AtomicU64::new(0), all: AtomicU64::new(0) });
        let report = runtime.block_on(run(request, heard, std::future::pending())).map_err(Error::new)?;
        let images = report.images.into_iter().map(|image| BakedImage {
            name: image.name,
            error: image.failure.map(|failure| Error { kind: failure.kind, message: failure.message }),
        });
        Ok(Baked { images: images.collect(), fetched: report.totals.fetched_bytes })
    }

    fn request(&self) -> Result<Request, Error> {
        let platform: Platform = match &self.platform {
            Some(text) => text.parse().map_err(|error| Error::input(&error))?,
            None => Platform::host(),
        };
        let root = Root::new(&self.root, CONTAINERD_ROOT);
        let mut images = Vec::new();
        for name in &self.images {
            let named = Named::parse(name).map_err(|error| Error::input(&error))?;
            for (reference, from) in
                chosen(&named, &mut |place| Ok(Arc::new(Local::open(place)?))).map_err(Error::new)?
            {
                let wanted = Wanted::new(reference, self.namespace.clone(), platform.clone());
                images.push(Wanted { from, pin: Some(self.pin), ..wanted });
            }
        }
        let registry = self.options(&root)?;
        Ok(Request {
            registry,
            policies: Policies {
                default: if self.unpack { Policy::Unpack } else { Policy::Fetch },
                ..Policies::default()
            },
            epoch: self.epoch,
            ..Request::new(root, images)
        })
    }
}

impl Bake {
    fn options(&self, root: &Root) -> Result<Options, Error> {
        let mut keychain = Keychain::default();
        keychain.add_files().map_err(Error::new)?;
        let own = root.dir(Path::new(HOSTS_DIR)).map_err(Error::new)?;
        let hosts = self.hosts_dir.clone().or(own).unwrap_or_else(|| HOSTS_DIR.into());
        Ok(Options {
            plain_http: self.plain_http,
            keychain,
            hosts: HostsDirs(vec![hosts]),
            ca_files: self.ca_files.clone(),
            ..Options::default()
        })
    }
}

impl fmt::Debug for Bake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bake").field("root", &self.root).field("images", &self.images).finish_non_exhaustive()
    }
}

/// Turns events into bytes done and bytes to do.
struct Heard {
    progress: Option<Progress>,
    came: AtomicU64,
    all: AtomicU64,
}

impl Listener for Heard {
    fn on(&self, event: &Event<'_>) {
        match event {
            Event::Planned { fetch, .. } => self.all.store(*fetch, Ordering::Relaxed),
            Event::BlobProgress { bytes, .. } => {
                self.came.fetch_add(*bytes, Ordering::Relaxed);
            }
            Event::BlobRetried { lost, .. } | Event::BlobFailed { lost, .. } => {
                self.came.fetch_sub(*lost, Ordering::Relaxed);
            }
            _ => return,
        }
        if let Some(progress) = &self.progress {
            progress(self.came.load(Ordering::Relaxed), self.all.load(Ordering::Relaxed));
        }
    }
}
