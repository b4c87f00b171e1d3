locals {
  create_network = var.network == null
  network        = local.create_network ? google_compute_network.this[0].id : var.network.network
  subnetwork     = local.create_network ? google_compute_subnetwork.this[0].id : var.network.subnetwork

  # Memorystore gets its addresses through a policy of the network: one a network and region.
  create_connection_policy = local.create_memorystore && (local.create_network || try(var.network.create_connection_policy, false))
}

resource "google_compute_network" "this" {
  # checkov:skip=CKV2_GCP_18: nothing in it listens, and the rules that every network has deny what comes in
  count = local.create_network ? 1 : 0

  project                 = var.project
  name                    = var.name
  auto_create_subnetworks = false

  depends_on = [google_project_service.this]
}

resource "google_compute_subnetwork" "this" {
  # checkov:skip=CKV_GCP_26: flow logs are charged, and only functions and Memorystore's endpoint are in it
  count = local.create_network ? 1 : 0

  project       = var.project
  name          = var.name
  region        = var.location
  network       = google_compute_network.this[0].id
  ip_cidr_range = var.subnetwork_range

  # What has no address of its own reaches Google's services.
  private_ip_google_access = true
}

resource "google_network_connectivity_service_connection_policy" "memorystore" {
  count = local.create_connection_policy ? 1 : 0

  project       = var.project
  name          = "${var.name}-memorystore"
  location      = var.location
  network       = local.network
  service_class = "gcp-memorystore"
  labels        = var.labels

  psc_config {
    subnetworks = [local.subnetwork]
  }

  depends_on = [google_project_service.this]
}
