//! Images that Kubernetes objects name.

use std::collections::HashSet;

use serde_json::Value;

use super::file::Image;
use super::{SpecError, Wrong, list};
use crate::oci::Reference;

/// Where a pod's description names containers.
const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// The images in a stream of YAML or JSON documents, each once: of pods and of templates of pods, wherever in an object they
/// are. What is no object but lines of references, as `kubeadm config images list` prints them, is read as a list.
///
/// # Errors
/// [`SpecError`] when it is not YAML, or names something that is no image.
pub fn from_kubernetes(text: &str, place: &str) -> Result<Vec<Image>, SpecError> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| {
        let at = error.location();
        let number = |n: u64| usize::try_from(n).ok();
        let wrong = Wrong {
            line: at.and_then(|at| number(at.line())),
            column: at.and_then(|at| number(at.column())),
            what: "this is not YAML".to_owned(),
        };
        SpecError { place: place.to_owned(), wrong: vec![wrong] }
    })?;
    if documents.iter().all(|document| matches!(document, Value::String(_) | Value::Null)) {
        return Ok(list::parse(text, place)?.images);
    }
    let mut names = Vec::new();
    for document in &documents {
        collect(document, &mut names);
    }
    let (mut images, mut wrong, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
    for name in names.into_iter().filter(|name| seen.insert(*name)) {
        match name.parse::<Reference>() {
            Ok(reference) => images.push(Image::new(reference)),
            Err(error) => wrong.push(Wrong { line: line_of(text, name), column: None, what: error.to_string() }),
        }
    }
    if wrong.is_empty() { Ok(images) } else { Err(SpecError { place: place.to_owned(), wrong }) }
}

fn collect<'v>(value: &'v Value, names: &mut Vec<&'v str>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| collect(value, names)),
        Value::Object(object) => {
            let listed = |key: &str| object.get(key).and_then(Value::as_array).into_iter().flatten();
            let containers = CONTAINERS.iter().flat_map(|key| listed(key)).filter_map(|one| one.get("image")?.as_str());
            // Volumes that are images (`ImageVolumeSource`).
            let volumes = listed("volumes").filter_map(|volume| volume.get("image")?.get("reference")?.as_str());
            names.extend(containers.chain(volumes));
            object.values().for_each(|value| collect(value, names));
        }
        _ => {}
    }
}

fn line_of(text: &str, name: &str) -> Option<usize> {
    text.lines().position(|line| line.contains(name)).map(|i| i + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        let images = from_kubernetes(text, "all.yaml").expect("images");
        images.iter().map(|image| image.named.to_string()).collect()
    }

    #[test]
    fn wherever_they_are() {
        let text = r#"
apiVersion: v1
kind: Pod
spec:
  initContainers: [{name: i, image: r.example/init:1}]
  containers:
    - name: a
      image: r.example/a:1
  ephemeralContainers: [{name: e, image: r.example/debug:1}]
  volumes: [{name: v, image: {reference: "r.example/volume:1"}}]
---
# Source: chart/templates/deployment.yaml
kind: Deployment
spec: {template: {spec: {containers: [{image: "r.example/a:1"}, {image: nginx}]}}}
---
---
kind: CronJob
spec: {jobTemplate: {spec: {template: {spec: {containers: [{image: r.example/cron@sha256:0000000000000000000000000000000000000000000000000000000000000000}]}}}}}
---
kind: List
items:
  - {kind: DaemonSet, spec: {template: {spec: {containers: [{image: r.example/listed:1}]}}}}
---
kind: ConfigMap
data: {image: not.an/image:1, containers: "no"}
"#;
        assert_eq!(
            names(text),
            [
                "r.example/init:1",
                "r.example/a:1",
                "r.example/debug:1",
                "r.example/volume:1",
                "docker.io/library/nginx:latest",
                "r.example/cron@sha256:0000000000000000000000000000000000000000000000000000000000000000",
                "r.example/listed:1",
            ]
        );
        assert_eq!(
            names(r#"{"kind": "Pod", "spec": {"containers": [{"image": "a"}]}}"#),
            ["docker.io/library/a:latest"]
        );
    }

    #[test]
    fn lines_of_kubeadm() {
        let text = "registry.k8s.io/kube-apiserver:v1.34.1\nregistry.k8s.io/pause:3.10\n";
        assert_eq!(names(text), ["registry.k8s.io/kube-apiserver:v1.34.1", "registry.k8s.io/pause:3.10"]);
        assert_eq!(names(""), Vec::<String>::new());
    }

    #[test]
    fn what_is_wrong() {
        for (text, start) in [
            ("kind: Pod\nspec:\n  containers:\n    - image: \"{{ .Values.image }}\"\n", "all.yaml:4: bad reference"),
            ("kind: [Pod\nspec: }", "all.yaml:2:"),
        ] {
            let error = from_kubernetes(text, "all.yaml").expect_err(text).to_string();
            assert!(error.starts_with(start), "{error}");
        }
    }
}
