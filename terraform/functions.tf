locals {
  # Beside this module in the repository: a module source with //terraform brings all of it.
  repository = "${path.module}/.."

  package_files = var.join.package == null ? [
    for file in fileset(local.repository, "forkjoin_gcp/**/*.{py,lua}") : file
    if !can(regex("^forkjoin_gcp/(cli|emulators|testing)/", file))
  ] : []
  handler_files = var.join.source_directory == null ? [] : [
    for file in fileset(var.join.source_directory, "**") : file
    if !strcontains("/${file}", "/.") && !strcontains("/${file}", "/__pycache__/") && file != "requirements.txt"
  ]
  # The package itself is in the archive, unless it is to be had from an index.
  handler_requirements = var.join.source_directory == null ? "" : try(file("${var.join.source_directory}/requirements.txt"), "")
  requirements = distinct(concat(
    compact([var.join.package]),
    [
      for line in split("\n", "${file("${local.repository}/functions/requirements.txt")}\n${local.handler_requirements}") :
      trimspace(line) if !can(regex("^\\s*(#|$|forkjoin-gcp\\b)", line))
    ],
  ))

  join_name  = "${var.name}-join"
  sweep_name = "${var.name}-sweep"
  # Known before the functions are there, which their own environment must tell: Cloud Run's
  # deterministic URLs. Internal ingress takes requests of Cloud Tasks at run.app alone.
  join_url  = "https://${local.join_name}-${data.google_project.this.number}.${var.location}.run.app"
  sweep_url = "https://${local.sweep_name}-${data.google_project.this.number}.${var.location}.run.app"

  settings = {
    for name, queue in var.queues : name => {
      for setting in keys(local.queue_settings) : setting => queue[setting] if queue[setting] != null
    }
  }
  environment = {
    FORKJOIN_PROJECT     = var.project
    FORKJOIN_LOCATION    = var.location
    FORKJOIN_DATABASE    = var.database.id
    FORKJOIN_MEMORYSTORE = local.memorystore_name
    FORKJOIN_JOIN_URL    = local.join_url
    FORKJOIN_INVOKER     = google_service_account.this["invoker"].email
    FORKJOIN_AUDIENCE    = local.join_url
    FORKJOIN_SETTINGS    = jsonencode({ for name, settings in local.settings : name => settings if length(settings) > 0 })
  }

  # A request ends before its task's deadline; the platform is not to end it sooner.
  join_timeout = max([
    for queue in var.queues : coalesce(queue.dispatch_deadline, local.queue_settings.dispatch_deadline.default)
  ]...)
}

data "archive_file" "functions" {
  count = var.join.archive == null ? 1 : 0

  type        = "zip"
  output_path = "${path.root}/.terraform/${var.name}-functions.zip"

  source {
    filename = "main.py"
    content  = file("${local.repository}/functions/main.py")
  }

  source {
    filename = "requirements.txt"
    content  = "${join("\n", local.requirements)}\n"
  }

  dynamic "source" {
    for_each = local.package_files
    content {
      filename = source.value
      content  = file("${local.repository}/${source.value}")
    }
  }

  dynamic "source" {
    for_each = local.handler_files
    content {
      filename = source.value
      content  = file("${var.join.source_directory}/${source.value}")
    }
  }
}

resource "google_storage_bucket" "functions" {
  # checkov:skip=CKV_GCP_62: only Cloud Build reads it, and audit logs say who else tried
  project  = var.project
  name     = "${var.project}-${var.name}-functions"
  location = var.location
  labels   = var.labels

  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = true # it holds only what this module puts there

  versioning {
    enabled = true
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      num_newer_versions = 3
      with_state         = "ARCHIVED"
    }
  }

  depends_on = [google_project_service.this]
}

resource "google_storage_bucket_object" "functions" {
  bucket = google_storage_bucket.functions.name
  # Named by its content: new code is a new name, which deploys it.
  name   = "functions-${var.join.archive == null ? data.archive_file.functions[0].output_sha256 : filesha256(var.join.archive)}.zip"
  source = var.join.archive == null ? data.archive_file.functions[0].output_path : var.join.archive
}

resource "google_artifact_registry_repository" "functions" {
  # checkov:skip=CKV_GCP_84: Google's own keys encrypt it, and it holds no secret
  project       = var.project
  location      = var.location
  repository_id = "${var.name}-functions"
  format        = "DOCKER"
  description   = "Images of the functions, built by Cloud Build."
  labels        = var.labels

  depends_on = [google_project_service.this]
}

resource "google_cloudfunctions2_function" "join" {
  project     = var.project
  location    = var.location
  name        = local.join_name
  description = "Handles batches: Cloud Tasks calls it."
  labels      = var.labels

  build_config {
    runtime           = var.join.runtime
    entry_point       = "join"
    service_account   = google_service_account.this["builder"].id
    docker_repository = google_artifact_registry_repository.functions.id

    source {
      storage_source {
        bucket = google_storage_bucket.functions.name
        object = google_storage_bucket_object.functions.name
      }
    }
  }

  service_config {
    service_account_email = google_service_account.this["join"].email
    ingress_settings      = "ALLOW_INTERNAL_ONLY"

    # Requests wait more than they compute: several share a CPU, each in a thread of its own.
    available_cpu                    = tostring(var.join.cpu)
    available_memory                 = var.join.memory
    max_instance_request_concurrency = var.join.request_concurrency
    min_instance_count               = var.join.min_instances
    max_instance_count               = var.join.max_instances
    timeout_seconds                  = local.join_timeout

    # Memorystore is reached through the network; everything else as without one.
    direct_vpc_egress = "VPC_EGRESS_PRIVATE_RANGES_ONLY"
    direct_vpc_network_interface {
      network    = local.network
      subnetwork = local.subnetwork
    }

    environment_variables = merge(var.join.environment, local.environment, {
      FORKJOIN_QUEUE = var.join.queue
      THREADS        = tostring(var.join.request_concurrency)
    })
  }

  depends_on = [
    google_artifact_registry_repository_iam_member.builder,
    google_project_iam_member.builder_logs,
    google_storage_bucket_iam_member.builder,
  ]
}

resource "google_cloudfunctions2_function" "sweep" {
  project     = var.project
  location    = var.location
  name        = local.sweep_name
  description = "Finds batches that nobody is working on: Cloud Scheduler calls it."
  labels      = var.labels

  build_config {
    runtime           = var.join.runtime
    entry_point       = "sweep"
    service_account   = google_service_account.this["builder"].id
    docker_repository = google_artifact_registry_repository.functions.id

    source {
      storage_source {
        bucket = google_storage_bucket.functions.name
        object = google_storage_bucket_object.functions.name
      }
    }
  }

  service_config {
    service_account_email = google_service_account.this["sweeper"].email
    ingress_settings      = "ALLOW_INTERNAL_ONLY"

    available_cpu                    = "1"
    available_memory                 = var.sweep.memory
    max_instance_request_concurrency = 1
    min_instance_count               = 0
    max_instance_count               = 1
    timeout_seconds                  = 180 # a call sweeps for 150 s at most

    direct_vpc_egress = "VPC_EGRESS_PRIVATE_RANGES_ONLY"
    direct_vpc_network_interface {
      network    = local.network
      subnetwork = local.subnetwork
    }

    environment_variables = merge(var.join.environment, var.sweep.environment, local.environment, {
      FORKJOIN_QUEUE          = var.join.queue
      FORKJOIN_SWEEP_INVOKER  = google_service_account.this["scheduler"].email
      FORKJOIN_SWEEP_AUDIENCE = local.sweep_url
    })
  }

  depends_on = [
    google_artifact_registry_repository_iam_member.builder,
    google_project_iam_member.builder_logs,
    google_storage_bucket_iam_member.builder,
  ]
}
