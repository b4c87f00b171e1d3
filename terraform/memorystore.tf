locals {
  create_memorystore = var.memorystore.existing == null
  # Computed, not read back: who may use it is then known before it exists.
  memorystore_name = coalesce(
    var.memorystore.existing,
    "projects/${var.project}/locations/${var.location}/instances/${var.name}"
  )
  memorystore_id = element(split("/", local.memorystore_name), 5)
}

resource "google_memorystore_instance" "this" {
  count = local.create_memorystore ? 1 : 0

  project     = var.project
  location    = var.location
  instance_id = var.name

  mode           = var.memorystore.cluster ? "CLUSTER" : "CLUSTER_DISABLED"
  shard_count    = var.memorystore.shards
  replica_count  = var.memorystore.replicas
  node_type      = var.memorystore.node_type
  engine_version = var.memorystore.engine_version

  authorization_mode      = "IAM_AUTH"
  transit_encryption_mode = "SERVER_AUTHENTICATION"

  # Where memory is full, writes are to fail and be seen. Evicting would take a lane's counters,
  # which costs moves, and with storage = "memorystore" the items themselves.
  engine_configs = merge({ maxmemory-policy = "noeviction" }, var.memorystore.engine_configs)

  persistence_config {
    mode = var.memorystore.persistence

    dynamic "aof_config" {
      for_each = var.memorystore.persistence == "AOF" ? [1] : []
      content {
        append_fsync = "EVERY_SEC"
      }
    }

    dynamic "rdb_config" {
      for_each = var.memorystore.persistence == "RDB" ? [1] : []
      content {
        rdb_snapshot_period = "ONE_HOUR"
      }
    }
  }

  desired_auto_created_endpoints {
    network    = local.network
    project_id = var.project
  }

  deletion_protection_enabled = var.deletion_protection
  labels                      = var.labels

  depends_on = [
    google_network_connectivity_service_connection_policy.memorystore,
    google_project_service.this,
  ]
}
