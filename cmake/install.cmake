# PREFIX/bin/roundhouse, and in PREFIX/share/roundhouse what its configurations and batch scripts name by paths from their root: from
# there `roundhouse run configs/demo.yaml --set run=...` works as in a checkout. Libraries are the system's own.
include(GNUInstallDirs)
set(data ${CMAKE_INSTALL_DATADIR}/roundhouse)
install(TARGETS roundhouse RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY configs slurm DESTINATION ${data} USE_SOURCE_PERMISSIONS)
install(DIRECTORY tests/data/tiny-world DESTINATION ${data}/tests/data)
install(PROGRAMS scripts/mpirun.sh DESTINATION ${data}/scripts)
install(FILES README.md CHANGELOG.md LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY docs/ DESTINATION ${CMAKE_INSTALL_DOCDIR}/docs)
