# A node image with its images in it: the machine that Packer starts bakes them into its own disk before it is shut down.
# The folder holds prebake's package, bake.toml, bake.lock and bake-node.sh.
variable "base" {
  type        = string
  description = "The image to begin with: a path or a URL; cloud-init in it takes the seed."
}

variable "checksum" {
  type = string
}

source "qemu" "node" {
  iso_url          = var.base
  iso_checksum     = var.checksum
  disk_image       = true
  disk_size        = "20G"
  format           = "qcow2"
  headless         = true
  ssh_username     = "root"
  ssh_timeout      = "10m"
  shutdown_command = "systemctl poweroff"
}

build {
  sources = ["source.qemu.node"]

  provisioner "file" {
    source      = "./"
    destination = "/tmp/bake"
  }

  provisioner "shell" {
    environment_vars = ["SOURCE=/tmp/bake"]
    script           = "bake-node.sh"
  }
}
