{
  description = "A self-hosted Nix binary cache: modules for both ends, and the push";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      linux = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      darwin = [
        "x86_64-darwin"
        "aarch64-darwin"
      ];
      eachOf =
        systems: make:
        nixpkgs.lib.genAttrs systems (system: make system nixpkgs.legacyPackages.${system});
    in
    {
      nixosModules = {
        client = ./nix/client.nix;
        builder = ./nix/builder.nix;
      };
      darwinModules.client = ./nix/darwin.nix;
      homeModules.client = ./nix/home-manager.nix;

      packages = eachOf (linux ++ darwin) (
        system: pkgs: {
          default = self.packages.${system}.push;
          push = pkgs.callPackage ./nix/push.nix { };
        }
      );

      devShells = eachOf linux (
        system: pkgs: {
          default = pkgs.mkShell {
            packages = [
              (pkgs.pulumi.withPackages (plugins: [ plugins.pulumi-python ]))
              pkgs.gnumake
              pkgs.minio-client
              pkgs.nix
              pkgs.python3
            ];
            # What PyPI's grpcio is linked with.
            LD_LIBRARY_PATH = nixpkgs.lib.makeLibraryPath [ pkgs.stdenv.cc.cc.lib ];
          };
        }
      );

      checks = eachOf linux (
        system: pkgs: {
          push = self.packages.${system}.push;
          # nixpkgs checks nix.conf with the Nix that reads it, and units with what NixOS knows.
          modules =
            let
              machine = nixpkgs.lib.nixosSystem {
                modules = [
                  self.nixosModules.client
                  self.nixosModules.builder
                  ./nix/example-machine.nix
                  { nixpkgs.hostPlatform = system; }
                ];
              };
            in
            pkgs.linkFarm "nix-binary-cache-modules" {
              "nix.conf" = machine.config.environment.etc."nix/nix.conf".source;
              units = machine.config.environment.etc."systemd/system".source;
            };
        }
      );
    };
}
